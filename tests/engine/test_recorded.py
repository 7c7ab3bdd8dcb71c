"""Recorded curves: where they are read from, and their replay in gradient steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.recorded import read_curve, replay_curve
from lrsearch.errors import InvalidArgumentError, LrsearchError, MissingDataError
from lrsearch.tracking import MissingPackageError, RecordedCurve, find_curves

DECAY = 0.3 + 2.0 * np.exp(-np.arange(400) / 15.0) + 0.01 * np.cos(7.0 * np.arange(400) ** 2)
FLAT = 2.3 + 0.02 * np.random.default_rng(1).standard_normal(400)
ROBUST = ExpTestSettings()

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return written


@pytest.mark.parametrize(
    "text",
    [
        "step,loss\n0,3\n1,2\n2,1\n",
        "loss\n3\n2\n1\n",
        "lr,step,train/loss\n0.1,0,3\n0.1,1,2\n0.1,2,1\n",
        "name,mse\na,3\nb,2\nc,1\n",
        "3\n2\n1\n",
        "step, loss\n2, 1\n0, 3\n1, 2\n",
        "step,loss,val\n0,3,\n0,,9\n1,2,\n2,1,\n2,,8\n",
    ],
    ids=["plain", "alone", "tracker's", "only numbers", "no header", "unordered", "gaps"],
)
def test_a_csv_file_gives_steps_and_losses(write: Write, text: str) -> None:
    curve = read_curve(write("c.csv", text))
    assert (list(curve.steps), list(curve.losses)) == ([0, 1, 2], [3.0, 2.0, 1.0])
    assert curve.lr is None


def test_a_loss_that_is_written_as_nan_is_one_that_diverged(write: Write) -> None:
    curve = read_curve(write("c.csv", "step,loss\n0,3\n10,inf\n20,nan\n"))
    assert list(curve.steps) == [0, 10, 20]
    assert not np.isfinite(list(curve.losses)[1:]).any()


def test_a_parquet_file_gives_steps_and_losses(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "c.parquet"
    pd.DataFrame({"step": [0, 5, 10], "mse": [3.0, 2.0, 1.0], "loss": 0.0}).to_parquet(path)
    curve = read_curve(str(path), column="mse")
    assert (list(curve.steps), list(curve.losses)) == ([0, 5, 10], [3.0, 2.0, 1.0])


def test_an_archive_gives_an_array_or_a_row_of_one(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, one=[3.0, 2.0], many=[[1, 2, 3], [4, 5, 6]])
    assert list(read_curve(f"{path}:one").losses) == [3.0, 2.0]
    assert list(read_curve(f"{path}:many[1]").losses) == [4.0, 5.0, 6.0]
    np.savez(tmp_path / "single.npz", only=[7.0])
    assert list(read_curve(str(tmp_path / "single.npz")).losses) == [7.0]


@pytest.mark.parametrize(
    ("name", "text", "column", "names"),
    [
        ("c.csv", "a,b\n1,2\n", None, ["'a', 'b'", "--column"]),
        ("c.csv", "a,b\n1,2\n", "c", ["'c'", "'a', 'b'"]),
        ("c.csv", "loss\n1\ntwo\n", None, ["'loss'", "'two'"]),
        ("c.csv", "step,loss\n0.5,1\n", None, ["'step'", "whole"]),
        ("c.csv", "step,loss\n0,1\n4,1\n4,2\n", None, ["step 4", "one run"]),
        ("c.csv", "step,loss\n", None, ["no losses"]),
        ("c.csv", "", None, ["cannot be read"]),
        ("c.npz", "no archive", None, ["cannot be read"]),
        ("c.txt", "1\n", None, ["FILE.csv"]),
    ],
)
def test_what_is_no_curve_is_named_in_one_line(
    write: Write, name: str, text: str, column: str | None, names: list[str]
) -> None:
    with pytest.raises(LrsearchError) as caught:
        read_curve(write(name, text), column=column)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    assert all(each in message for each in names)


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("{}:none", "'one', 'many', 'words'"),
        ("{}", "'one', 'many', 'words'"),
        ("{}:many", "many[0]"),
        ("{}:many[2]", "0 to 1"),
        ("{}:one[0]", "(2,)"),
        ("{}:words", "numbers"),
    ],
)
def test_a_wrong_place_in_an_archive_is_named(tmp_path: Path, place: str, names: str) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, one=[3.0, 2.0], many=[[1, 2], [4, 5]], words=["a"])
    with pytest.raises(LrsearchError) as caught:
        read_curve(place.format(path))
    assert names in str(caught.value)


@pytest.mark.parametrize("source", ["no.csv", "no.parquet", "no.npz:key"])
def test_a_file_that_is_not_there_is_missing(source: str) -> None:
    with pytest.raises(MissingDataError, match=r"no file 'no\."):
        read_curve(source)


# --- the replay ------------------------------------------------------------------------------


def curve_of(losses: Any, every: int = 1, lr: float | None = None) -> RecordedCurve:
    return RecordedCurve(range(0, every * len(losses), every), list(losses), lr)


def test_the_verdict_and_the_window_that_gave_it() -> None:
    accepted = replay_curve(curve_of(DECAY), ROBUST, lr=0.04)
    assert accepted.verdict == "accepted"
    assert accepted.deciding is accepted.windows[0]
    rejected = replay_curve(curve_of(FLAT), ROBUST, lr=0.04)
    assert rejected.verdict == "rejected"
    assert rejected.deciding is rejected.windows[-1]
    assert [rejected.level(w) for w in rejected.windows] == [0.025, 0.0125, 0.00625]
    early = replay_curve(curve_of(DECAY[:20]), ROBUST, lr=0.04)
    assert (early.verdict, early.deciding, early.windows) == ("undecided", None, [])
    assert early.needed == 60


def test_the_recorded_rate_counts_unless_another_is_given() -> None:
    assert replay_curve(curve_of(DECAY, lr=0.04), ROBUST).lr == 0.04
    assert replay_curve(curve_of(DECAY, lr=0.04), ROBUST, lr=0.05).lr == 0.05
    with pytest.raises(InvalidArgumentError, match="--lr"):
        replay_curve(curve_of(DECAY), ROBUST)
    with pytest.raises(InvalidArgumentError, match="lr must be a positive"):
        replay_curve(curve_of(DECAY), ROBUST, lr=0.0)


def test_a_thinned_curve_is_told_in_gradient_steps() -> None:
    whole = replay_curve(curve_of(DECAY), ROBUST, lr=0.04)
    thin = replay_curve(curve_of(DECAY, every=10), ROBUST, lr=0.004)
    assert [w.decision for w in thin.windows] == [w.decision for w in whole.windows]
    for few, all_ in zip(thin.windows, whole.windows, strict=True):
        assert (few.start, few.last_step) == (10 * all_.start, 10 * (all_.stop - 1))
        assert few.lr == pytest.approx(0.1 * all_.lr)
        assert few.slope == pytest.approx(0.1 * all_.slope)
        assert few.pvalue == all_.pvalue
    assert thin.needed == 600


def test_the_budget_counts_gradient_steps() -> None:
    settings = ExpTestSettings(total_steps=2000)
    assert replay_curve(curve_of(DECAY, every=10), settings, lr=0.004).windows[-1].stop <= 2000


def test_the_json_is_plain() -> None:
    broken = np.array([*DECAY[:100], np.nan])
    content = replay_curve(curve_of(broken), ROBUST, lr=0.04).as_json()
    json.dumps(content, allow_nan=False)
    assert (content["verdict"], content["reason"], content["step"]) == ("rejected", "diverged", 100)
    assert content["windows"][0]["decision"] == "accept"


# --- MLflow ----------------------------------------------------------------------------------


@pytest.fixture
def _reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of runs, where the package is not installed (or was before it had one) too."""
    pytest.importorskip("mlflow", exc_type=ImportError)
    from lrsearch_integrations.mlflow_curves import read_curve as of_run

    try:
        find_curves("mlflow")
    except MissingPackageError:
        monkeypatch.setattr("lrsearch.engine.recorded.find_curves", lambda name: of_run)


@pytest.mark.usefixtures("_reader")
def test_a_run_gives_its_curve_and_its_first_rate(store_uri: str) -> None:
    from lrsearch_integrations.mlflow_tracker import open_study_run

    with open_study_run(experiment="e", name="study", tracking_uri=store_uri) as study:
        study.log_metrics({"train/loss": 0.5}, 0)  # the outcome, as a study keeps it
        with study.child("trial") as run:
            run.log_params({"lr": 0.04})
            for step in range(0, 1000, 10):
                run.log_metrics({"train/loss": float(DECAY[step // 10]), "train/lr": 0.02}, step)
        with study.child("other") as other:
            other.log_metrics({"train/lr": 0.03, "mse": 4.0}, 0)
            other.log_metrics({"train/lr": 0.01, "mse": 3.0}, 1)
            other.log_metrics({"mse": float("nan")}, 2)
    curve = read_curve(run.run_id, tracking_uri=store_uri)
    assert list(curve.steps) == list(range(0, 1000, 10))
    assert list(curve.losses) == pytest.approx(DECAY[:100])
    assert curve.lr == 0.04
    curve = read_curve(other.run_id, column="mse", tracking_uri=store_uri)
    assert curve.lr == 0.03
    assert list(curve.steps) == [0, 1, 2]
    assert list(curve.losses)[:2] == [4.0, 3.0]
    assert np.isnan(curve.losses[2])
    with pytest.raises(MissingDataError, match=r"no curve of 'train/loss' .*a trial's run"):
        read_curve(study.run_id, tracking_uri=store_uri)


@pytest.mark.usefixtures("_reader")
def test_a_run_that_is_not_there_is_named(store_uri: str, tmp_path: Path) -> None:
    with pytest.raises(LrsearchError, match="no file and no run 'abc'"):
        read_curve("abc", tracking_uri=store_uri)
    with pytest.raises(MissingDataError, match="--tracking-uri"):
        read_curve("abc", tracking_uri=f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
