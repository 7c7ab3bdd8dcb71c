"""``lrsearch reproduce``: the list, wrong usage, quick cuts of every table, and their record."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reproducing import DATA, FILES, Called, assert_compares, assert_files, assert_goes_on, need

from experiments.exptest.methods import FROM_PAPER
from experiments.exptest.published import (
    ALPHAS,
    BATCH_SIZES,
    BETAS,
    TABLE1_FACTORS,
    TABLE3_FACTORS,
)
from experiments.exptest.recorded import DIVERGING, restart_of
from experiments.harness.reproduction import Report, Reproduced, Results
from experiments.harness.session import Session
from experiments.lipschitz.table2 import EPOCHS
from experiments.shifted_digits import GRID, TASKS
from lrsearch.cli import main as cli
from lrsearch.cli.main import main
from lrsearch.controllers.replay import search_verdict
from lrsearch.controllers.settings import ExpTestSettings

NAMES = (
    "exptest-table1",
    "exptest-table2",
    "exptest-fig2",
    "exptest-table3",
    "exptest-table4",
    "exptest-appendix-e",
    "exptest-recorded",
    "exptest-shifts",
    "lipschitz-shifts",
    "lipschitz-mnist-cnn",
    "lipschitz-table1",
    "lipschitz-table2",
    "lipschitz-table3",
    "joint-search",
    "calibration",
)


# --- the list --------------------------------------------------------------------------------


def test_without_a_name_all_are_listed_with_their_titles(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["reproduce"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].split() == ["name", "what"]
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[2:]}
    assert set(NAMES) <= set(listed)
    assert main(["reproduce", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["what"] for row in rows} == listed
    assert all(row["what"] for row in rows)


def test_scales_of_the_parser_are_those_of_the_harness() -> None:
    from experiments.harness.reproduction import SCALES

    assert cli.SCALES == SCALES


# --- wrong usage -----------------------------------------------------------------------------

RECORDED = ["reproduce", "exptest-recorded", "--no-tracking"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["reproduce", "exptest-table9", "--no-tracking"], "exptest-table9"),
        ([*RECORDED, "--scale", "huge"], "--scale"),
        ([*RECORDED, "--seeds", "0"], "seeds"),
        ([*RECORDED, "--seeds", "-1"], "seeds"),
        ([*RECORDED, "--seeds", "many"], "--seeds"),
        ([*RECORDED, "--workers", "0"], "workers"),
        ([*RECORDED, "--workers", "-2"], "workers"),
        ([*RECORDED, "--workers", "all"], "--workers"),
        ([*RECORDED, "--minutes", "soon"], "--minutes"),
        ([*RECORDED, "--minutes", "nan", "--workers", "1"], "minutes"),
        ([*RECORDED, "--minutes", "-1"], "minutes"),
        (["reproduce", "exptest-table1", "--no-tracking", "--rows", "*"], "--rows"),
        ([*RECORDED, "--epochs", "3"], "--epochs"),
        ([*RECORDED, "--epochs", "0"], "epochs"),
        ([*RECORDED, "--option", "decay=l2"], "decay"),
        ([*RECORDED, "--option", "decay"], "NAME=VALUE"),
        ([*RECORDED, "--merge", "no-such-folder"], "no-such-folder"),
        (["reproduce", "lipschitz-table3", "--no-tracking", "--option", "decay=l1"], "'l2'"),
        (["reproduce", "exptest-table4", "--no-tracking", "--option", "decay=l2"], "precision"),
        (["reproduce", "exptest-table4", "--no-tracking", "--rows", "VGG*"], "'Adam 0.01'"),
        (["reproduce", "lipschitz-mnist-cnn", "--no-tracking", "--rows", "Lion"], "'Lion'"),
        ([*RECORDED, "--json", "/no/such/folder/x.json"], "--json"),
        ([*RECORDED, "--data-dir", "/no/such/folder"], "exptest_recorded.npz"),
        (["reproduce", "exptest-recorded", "--tracking-uri", "nonsense://x"], "nonsense://x"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_status_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    names: str,
) -> None:
    monkeypatch.delenv("LRSEARCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert_one_line(capsys, names)


@pytest.mark.parametrize(
    "name",
    [
        *("exptest-recorded", "exptest-table1", "exptest-table3", "exptest-appendix-e"),
        "lipschitz-mnist-cnn",
        *("lipschitz-table1", "lipschitz-table2", "lipschitz-table3", "exptest-table4"),
    ],
)
def test_missing_data_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.delenv("LRSEARCH_DATA", raising=False)
    command = ["reproduce", name, "--scale", "quick", "--seeds", "1", "--workers", "1"]
    places = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--no-tracking"]
    assert main([*command, *places]) == 2
    assert_one_line(capsys, "data")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*RECORDED, "--out", str(tmp_path / place)]) == 2
    assert_one_line(capsys, str(tmp_path / place))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    assert main([*RECORDED, "--out", str(tmp_path / "out")]) == 2
    assert_one_line(capsys, str(tmp_path / "out"))


def assert_one_line(capsys: pytest.CaptureFixture[str], names: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("lrsearch")
    assert names in err


# --- quick cuts ------------------------------------------------------------------------------


def grid(factors: tuple[float, ...]) -> set[tuple[object, ...]]:
    """Methods x rates of Tables 1 and 3."""
    fixed = ("Adam", "SGD", "SGD w/ Mom.", "RMSprop")
    own = [f"ExpTest ({mode})" for mode in ("notebook", "paper", "robust")]
    return {(method, f"{factor:g}") for method in fixed for factor in factors} | {
        (method, "own") for method in (*own, "Adadelta")
    }


FORMS = ("notebook", "paper", "robust", "notebook, as committed")
# name -> data, keys of a line, lines, tables, figures, measured column.
EXPECTED: dict[str, tuple[str, list[str], set[tuple[object, ...]], set[str], set[str], str]] = {
    "exptest-table1": (
        *("mnist", ["method", "rate"]),
        grid(TABLE1_FACTORS) | {(f"ExpTest ({FROM_PAPER})", "own")},
        *({"comparison"}, {"curves"}, "accuracy"),
    ),
    "exptest-table2": (
        *("mnist", ["mode", "alpha", "beta"]),
        {(form, alpha, beta) for form in FORMS for alpha in ALPHAS for beta in BETAS},
        *({"comparison"}, set(), "accuracy"),
    ),
    "exptest-fig2": (
        *("mnist", ["mode", "batch_size"]),
        {(form, size) for form in (*FORMS, FROM_PAPER) for size in BATCH_SIZES},
        *({"comparison"}, {"curves"}, "accuracy"),
    ),
    "exptest-appendix-e": (
        *("housing", ["model", "rate"]),
        {
            (f"32 wide, {depth} deep", f"{factor:g}")
            for depth in (2, 8)
            for factor in TABLE3_FACTORS
        },
        *({"comparison"}, {"models"}, "test_mse"),
    ),
    "lipschitz-table2": (
        *("mnist", ["dataset", "epochs", "rate"]),
        {
            (name, epochs, rate)
            for name, stops in EPOCHS.items()
            for epochs in stops
            for rate in ("0.1", "1/L")
        }
        | {("Cover Type", 1000, "1/L of all rows")}
        | {("MNIST", 200, f"1/L, {what}") for what in ("whole loss", "m of a batch")},
        *({"comparison", "recomputed"}, {"curves", "mnist"}, "accuracy"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_quick_cut_has_every_line_of_the_table_and_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data, by, lines, tables, figures, of = EXPECTED[name]
    need(data)
    if name.startswith("lipschitz"):
        need("covertype")
    call = Called(name, tmp_path / "out", capsys)
    text = call("--no-tracking")
    assert str(call.out) in text
    assert (call.out / "report.txt").read_text() in text
    if name != "exptest-appendix-e":  # whose text is means by model, and has no figures beside it
        assert "quick cut" in text
    assert "MLflow" not in text
    assert "Recorded" not in text
    assert_files(call, tables, figures)
    assert_compares(call, by, lines, of)
    assert_goes_on(call, monkeypatch, tables)


@pytest.mark.slow
def test_a_quick_cut_of_mnist_learns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """256 steps at the bound; a network that guesses gets 10 %."""
    need("mnist")
    call = Called("exptest-fig2", tmp_path / "out", capsys)
    call("--no-tracking")
    table = call.table().set_index(["mode", "batch_size"])["measured"]
    assert all(table[form, 32] > 80.0 for form in FORMS)
    # The notebooks' batches alone differ: [E] Fig. 2's order.
    assert table["paper", 32] > table["paper", 512] > table["paper", 2048]


@pytest.mark.parametrize(("versions", "told"), [(["1+a"], False), (["1+0"], True)])
def test_cells_of_another_version_are_told(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    versions: list[str],
    told: bool,
) -> None:
    """Also where none is of this version: finished cells outlive a change of the code."""
    rows = Results(pd.DataFrame({"seed": [0]}), [])
    kept = Reproduced(Report("a table", {}), rows, tmp_path, "1+a", versions, 0, 0)
    monkeypatch.setattr("lrsearch.cli.reproducing.session", lambda *_, **__: Session(kept, "", ""))
    assert main(["reproduce", "exptest-table1"]) == 0
    assert ("another version of the code (1+0; this is 1+a)" in capsys.readouterr().out) == told


# --- networks, epoch by epoch -----------------------------------------------------------------


# --- our own measurements --------------------------------------------------------------------


@pytest.mark.slow
def test_a_quick_look_at_shifts_has_every_task_and_mode(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Called("exptest-shifts", tmp_path / "out", capsys)
    text = call("--no-tracking")
    assert "robust less paper, paired over tasks and seeds" in text
    table, runs = call.table("regrets"), call.table("runs")
    modes = {"notebook", "paper", "robust"}
    assert set(table[["task", "method"]].itertuples(index=False, name=None)) == {
        (task, mode) for task in TASKS for mode in modes
    }
    # The regret is to the best fixed rate's accuracy on the same task.
    fixed = runs[runs["method"] == "SGD"]
    assert len(fixed) == len(TASKS) * len(GRID)
    best = fixed.groupby("task")["accuracy"].max()
    for row in table.to_dict("records"):
        assert row["regret"] == pytest.approx(best[row["task"]] - row["accuracy"])
    assert_goes_on(call, monkeypatch, {"regrets", "totals"})


@pytest.mark.slow
def test_a_quick_calibration_has_every_group_and_keeps_alpha(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Called("calibration", tmp_path / "out", capsys)
    text = call("--no-tracking")
    assert "robust above alpha beyond the interval, no decay, N >= 50: none" in text
    assert_files(call, {"calibration"}, {"size", "power"})
    table = call.table("calibration")
    assert set(table["group"]) == {"no decay", "decay", "between", "search", "watch"}
    windows = table[table["group"].isin(["no decay", "decay", "between"])]
    assert set(windows["test"]) == {"notebook", "plain", "robust"}
    assert table["share"].between(table["low"], table["high"]).all()
    assert (table["hits"] == table["share"] * table["replicates"]).all()
    monkeypatch.setattr(
        "experiments.calibration.reproduction.measure",
        lambda *_, **__: pytest.fail("a finished cell was measured again"),
    )
    assert_goes_on(call, monkeypatch, {"calibration"})


# --- the recorded runs -----------------------------------------------------------------------


@pytest.mark.slow
def test_verdicts_on_the_recorded_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("recorded")
    call = Called("exptest-recorded", tmp_path / "out", capsys)
    text = call("--no-tracking")
    assert "first housing rungs (all five diverge) accepted" in text
    assert_files(call, {"verdicts"}, {"mnist_0", "housing_0", "housing_4"})
    table = call.table("verdicts")
    housing, mnist = table[table["data"] == "housing"], table[table["data"] == "mnist"]
    modes = {"notebook", "paper", "robust"}
    # Each mode on each MNIST record, and on both rungs of each housing record.
    assert mnist.groupby("run")["mode"].apply(set).tolist() == [modes] * 5
    assert mnist["verdict"].eq("accepted").all()
    for rung, verdict in (("1 x bound", "rejected"), ("0.33 x bound", "accepted")):
        part = housing[housing["rung"] == rung]
        assert part.groupby("run")["mode"].apply(set).tolist() == [modes] * 5
        assert part["verdict"].eq(verdict).all()
    swept = housing[housing["rung"] == "any rate"]
    assert swept["run"].tolist() == [DIVERGING]
    assert swept["accepted"].tolist() == [0]
    monkeypatch.setattr(
        "experiments.exptest.recorded.search_verdict",
        lambda *_, **__: pytest.fail("a finished cell was measured again"),
    )
    assert_goes_on(call, monkeypatch, {"verdicts"})


@pytest.fixture(scope="module")
def diverging() -> np.ndarray[Any, np.dtype[np.float64]]:
    need("recorded")
    with np.load(DATA / FILES["recorded"]) as archive:
        return np.asarray(archive["housing"][DIVERGING], np.float64)


CHOICES = {
    "mode": st.sampled_from(("robust", "paper")),
    "alpha": st.floats(1e-6, 1.0 - 1e-6),
    "exponent": st.floats(-5.0, 3.0),
    "full_batch": st.booleans(),
    "total_steps": st.none() | st.integers(1, 20_000),
}


def accepts(curve: Any, exponent: float, **options: Any) -> bool:
    decision = search_verdict(ExpTestSettings(**options), curve, lr=10.0**exponent)
    return decision is not None and decision.kind == "accept"


@settings(max_examples=200, deadline=None)
@given(**CHOICES)
def test_no_setting_accepts_the_diverging_record(
    diverging: Any, exponent: float, **options: Any
) -> None:
    assert not accepts(diverging, exponent, **options)


@settings(max_examples=200, deadline=None)
@given(**CHOICES)
def test_no_setting_accepts_the_diverging_records_first_rung_alone(
    diverging: Any, exponent: float, **options: Any
) -> None:
    rung = diverging[:6]
    assert restart_of(diverging) == 6
    assert rung[-1] > 1e15
    for seen in range(1, 7):
        assert not accepts(rung[:seen], exponent, **options)


def test_its_second_rung_alone_is_accepted(diverging: Any) -> None:
    """So that the two properties above could fail."""
    for mode in ("robust", "paper"):
        assert accepts(diverging[6:], -0.5, mode=mode, full_batch=True, alpha=0.05)


# --- the record ------------------------------------------------------------------------------


@pytest.mark.slow
def test_table_3_is_recorded_with_a_nested_run_for_each_training(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    store_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mlflow", exc_type=ImportError)
    from lrsearch_integrations.mlflow_api import MlflowClient

    need("housing")
    call = Called("exptest-table3", tmp_path / "out", capsys)
    content = json.loads(call("--tracking-uri", store_uri, "--json", "-"))
    tables = {"comparison", "comparison_best"}
    assert_files(call, tables, {"curves"})
    assert_compares(call, ["method", "rate"], grid(TABLE3_FACTORS), "test_mse")
    rows = call.table("runs")

    client = MlflowClient(tracking_uri=store_uri)
    parent = client.get_run(content["run_id"])
    assert content["tracking_uri"] == store_uri
    assert parent.info.status == "FINISHED"
    assert client.get_experiment(parent.info.experiment_id).name == "reproduce exptest-table3"
    assert parent.data.tags["lrsearch.kind"] == "study"
    assert parent.data.tags["lrsearch.scale"] == "quick"
    assert parent.data.tags["lrsearch.versions"] == ", ".join(content["versions"])
    assert parent.data.params["seeds"] == "0"
    assert parent.data.params["scale"] == "quick"
    artifacts = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {
        "curves.png",
        *(f"{name}.{kind}" for name in (*tables, "runs") for kind in ("parquet", "csv")),
    }
    kept = client.download_artifacts(parent.info.run_id, "comparison.parquet", str(tmp_path))
    pd.testing.assert_frame_equal(pd.read_parquet(kept), call.table())
    means = call.table().set_index("method")["measured"]
    for mode in ("notebook", "paper", "robust"):
        assert parent.data.metrics[f"test/mse/{mode}"] == means[f"ExpTest ({mode})"]

    runs = client.search_runs([parent.info.experiment_id], max_results=100)
    nested = {
        (run.data.tags["lrsearch.method"], run.data.params["rate"]): run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert len(runs) == len(nested) + 1 == len(rows) + 1
    assert set(nested) == grid(TABLE3_FACTORS)
    for row in rows.to_dict("records"):
        run = nested[row["method"], row["rate"]]
        assert run.data.params["seed"] == "0"
        if row["lr"] == row["lr"]:
            assert float(run.data.params["lr"]) == row["lr"]
        else:
            assert "lr" not in run.data.params  # Adadelta's own
        sound = np.isfinite(row["train_loss"])
        assert run.info.status == ("FINISHED" if sound else "FAILED")
        assert ("diverged_at_step" in run.data.metrics) == (not sound)
        if sound:
            assert run.data.metrics["test/mse"] == row["test_mse"]
            assert run.data.metrics["test/mse_best"] == row["test_mse_best"]
    example = nested["Adam", "0.01"]
    history = client.get_metric_history(example.info.run_id, "train/loss")
    steps = [point.step for point in history]
    assert (min(steps), max(steps)) == (0, 399)
    assert len(steps) == len(set(steps)) == 300
    values = {point.step: point.value for point in history}
    assert values[0] > values[399] > 0.0

    assert_goes_on(call, monkeypatch, tables)


@pytest.mark.slow
def test_a_reproduction_that_fails_is_recorded_as_failed(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    store_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mlflow", exc_type=ImportError)
    from lrsearch_integrations.mlflow_api import MlflowClient

    monkeypatch.delenv("LRSEARCH_DATA", raising=False)
    command = ["reproduce", "exptest-recorded", "--workers", "1", "--tracking-uri", store_uri]
    assert main([*command, "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert_one_line(capsys, "exptest_recorded.npz")
    client = MlflowClient(tracking_uri=store_uri)
    experiment = client.get_experiment_by_name("reproduce exptest-recorded")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
