"""Several worker processes for real: the answer of one, whoever dies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from lrsearch import search
from lrsearch.engine.result import SearchResult
from lrsearch.engine.workers.process import WorkersError
from lrsearch.errors import InvalidArgumentError
from lrsearch.studies.storages import open_storage

pytestmark = pytest.mark.slow

# Far above what trains: rungs are rejected before one is accepted.
FACTOR = 30.0


@pytest.fixture
def run(
    tmp_path: Path, scale_bound: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SearchResult]:
    scale_bound(FACTOR)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def started(task: str, **options: Any) -> SearchResult:
        if options.get("workers", 1) != 1:
            options.setdefault("storage", f"journal:{tmp_path / 'study.journal'}")
        if options.get("method", "exptest") == "exptest":
            options.setdefault("start", "bound")
        return search(f"worker_tasks:{task}", tracker="none", **options)

    return started


def answer(result: SearchResult) -> tuple[Any, ...]:
    return result.lr, result.value, result.val_loss, result.train_loss


def check_over(result: SearchResult) -> None:
    """No trial is left half done, and none is there twice."""
    states = set(result.trials["state"])
    assert states <= {"COMPLETE", "PRUNED", "FAIL"}


def of(result: SearchResult, number: int) -> pd.DataFrame:
    rows = result.windows[result.windows["trial"] == number]
    return rows.reset_index(drop=True)


def test_two_workers_find_what_one_finds(run: Callable[..., SearchResult], tmp_path: Path) -> None:
    one = run("line")
    assert len(one.trials) > 3
    two = run("line", workers=2, study_name="two")
    assert answer(two) == answer(one)
    check_over(two)
    # Rung for rung they are the same trials, as far as one worker gets.
    for number, row in one.trials.iterrows():
        other = two.trials.iloc[number]
        assert (other["lr"], other["state"]) == (row["lr"], row["state"])
        pd.testing.assert_frame_equal(of(two, number), of(one, number))
    lower = two.trials.iloc[len(one.trials) :]
    assert all(lower["reason"].str.startswith("dominated"))
    assert not list(tmp_path.glob("*.checkpoints/*"))


@pytest.mark.parametrize("method", ["grid", "random", "tpe", "lipschitz"])
def test_every_method_runs_its_trials_once_each(
    run: Callable[..., SearchResult], method: str
) -> None:
    options: dict[str, Any] = {"method": method, "epochs": 7}
    if method == "lipschitz":
        options["multipliers"] = (0.1, 1.0)
    one = run("line", **options)
    two = run("line", workers=2, **options)
    check_over(two)
    assert len(two.trials) == len(one.trials)
    if method != "tpe":  # which depends on what it has seen
        assert list(two.trials["lr"]) == list(one.trials["lr"])
        assert answer(two) == answer(one)


def test_a_killed_workers_trial_goes_on(
    run: Callable[..., SearchResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = run("line")
    monkeypatch.setenv("LRSEARCH_TEST_MARK", str(tmp_path / "mark"))
    (tmp_path / "mark").touch()
    two = run("deadly_line", workers=2, checkpoint_seconds=0.01)
    assert not (tmp_path / "mark").exists()
    assert answer(two) == answer(one)
    check_over(two)
    assert "SIGKILL; its trial goes on from its last checkpoint" in caplog.text
    for number in range(len(one.trials)):
        pd.testing.assert_frame_equal(of(two, number), of(one, number))


def test_what_kills_everybody_is_not_fed_for_ever(run: Callable[..., SearchResult]) -> None:
    with pytest.raises(WorkersError, match="death in a row without a trial that ended"):
        run("mortal_line", workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_always_fails_ends_the_study_with_the_users_own_error(
    run: Callable[..., SearchResult], tmp_path: Path, workers: int
) -> None:
    storage = f"journal:{tmp_path / 'broken.journal'}"
    with pytest.raises(RuntimeError, match="the user's own trouble") as told:
        run("broken_line", workers=workers, storage=storage, study_name="s", max_failures=2)
    if workers == 2:
        assert "in forward" in "".join(told.value.__notes__)
    study = optuna.load_study(study_name="s", storage=open_storage(storage))
    states = [trial.state.name for trial in study.trials]
    assert states.count("FAIL") >= 2
    assert "RUNNING" not in states


def test_running_out_of_a_devices_memory_fails_the_trial_with_the_sizes(
    run: Callable[..., SearchResult], tmp_path: Path
) -> None:
    storage = f"journal:{tmp_path / 'hungry.journal'}"
    with pytest.raises(RuntimeError, match="out of memory"):
        run("hungry_line", workers=2, storage=storage, study_name="s", max_failures=1)
    study = optuna.load_study(study_name="s", storage=open_storage(storage))
    reason = study.trials[0].user_attrs["lrsearch:reason"]
    assert "5 parameters, batches of 16" in reason
    assert "20.00 GiB" in reason


@pytest.mark.parametrize("storage", ["sqlite:///{}/study.db", "sqlite:///:memory:"])
def test_several_workers_on_sqlite_are_refused_with_the_remedy(
    run: Callable[..., SearchResult], tmp_path: Path, storage: str
) -> None:
    with pytest.raises(InvalidArgumentError, match="journal:") as told:
        run("line", workers=2, storage=storage.format(tmp_path))
    assert "\n" not in str(told.value)
