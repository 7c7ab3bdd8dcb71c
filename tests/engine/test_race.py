"""The race before a study's first trial: on the bill, on record, and once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from lrsearch import search
from lrsearch.engine import running
from lrsearch.engine.race import RACE, record_race
from lrsearch.engine.request import SearchRequest, prepare
from lrsearch.engine.start import Start
from lrsearch.errors import InvalidArgumentError
from lrsearch.studies.attributes import PROBE, REASON, STOP_REASON
from lrsearch.tracking import NullRun
from lrsearch.training import probes as probes_module

MakeLine = Callable[..., Any]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each step of any SGD."""
    taken: list[int] = []
    true = torch.optim.SGD.step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        taken.append(1)
        return true(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    return taken


def probes_of(result: Any) -> Any:
    return result.trials[result.trials["reason"].str.startswith("probe: ")]


def test_every_step_is_on_the_bill_and_forward_passes_at_a_third(
    make_line: MakeLine, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = make_line()
    looks: list[int] = []
    true = probes_module.evaluate_rows

    def look(*arguments: Any, **named: Any) -> Any:
        before = line.spy.looks
        seen = true(*arguments, **named)
        looks.append(line.spy.looks - before)
        return seen

    monkeypatch.setattr(probes_module, "evaluate_rows", look)
    result = search(line.task, tracker="none")
    assert result.start == "race"
    assert len(looks) >= 3  # ends of rungs
    passes = line.spy.forwards - len(steps) + sum(looks)
    assert result.steps == len(steps) + ceil(passes / 3)
    assert result.trials["steps"].iloc[-1] == 400
    # The first gradient of all moves no probe: it hangs the ladder up.
    assert result.trials["steps"].sum() == len(steps) - 1


def test_probes_stand_in_the_tables_before_the_one_trial_at_the_winners_rate(
    make_line: MakeLine,
) -> None:
    result = search(make_line().task, tracker="none")
    probes = probes_of(result)
    assert len(probes) == len(result.trials) - 1 >= 3
    assert set(probes["state"]) == {"PRUNED"}
    assert probes["pvalue"].between(0.0, 1.0).all()
    assert probes["lr"].is_unique
    (won,) = probes["lr"][probes["reason"].str.startswith("probe: won")]
    assert 0.33 * won <= result.lr * (1 + 1e-9)
    assert result.lr <= won * (1 + 1e-9)
    assert result.trials["state"].iloc[-1] == "COMPLETE"
    assert set(result.windows["trial"]) == set(range(len(result.trials)))
    accepted = result.windows[result.windows["decision"] == "accept"]["trial"]
    assert list(accepted) == [probes.index[probes["lr"] == won][0], len(probes)]
    json.dumps(result.as_json(), allow_nan=False)
    kept = result.study.user_attrs[RACE]
    assert kept["rate"] == result.lr
    assert kept["steps"] == probes["steps"].sum() + kept["forward_steps"]


def test_probes_begin_where_the_trial_does(make_line: MakeLine) -> None:
    line = make_line()
    search(line.task, seed=3, tracker="none")
    assert len(set(line.spy.starts)) == 1
    first = [batches[:10] for batches in line.spy.batches if len(set(batches[:10])) == 10]
    assert len(first) >= 3
    assert all(batches == first[0] for batches in first)


def test_a_budget_of_trials_counts_no_probe(make_line: MakeLine) -> None:
    result = search(make_line(epochs=4).task, trials=1, tracker="none")
    assert len(result.trials) - len(probes_of(result)) == 1
    assert result.lr == result.lr


@pytest.mark.parametrize("storage", ["sqlite:///{}/study.db", "journal:{}/study.journal"])
def test_a_study_that_is_gone_on_with_is_not_raced_again(
    make_line: MakeLine, tmp_path: Path, storage: str
) -> None:
    asked: dict[str, Any] = {
        "storage": storage.format(tmp_path),
        "study_name": "kept",
        "tracker": "none",
    }
    whole = search(make_line().task, tracker="none")
    raced = int(whole.trials["steps"].iloc[:-1].sum())
    with pytest.raises(RuntimeError, match="the user's own trouble"):
        search(make_line(fail_at=raced + 100).task, max_failures=1, **asked)
    line = make_line()
    resumed = search(line.task, resume=True, **asked)
    assert len(probes_of(resumed)) == len(probes_of(whole))
    assert line.spy.forwards <= 400  # the trial's own
    assert (resumed.lr, resumed.value) == (whole.lr, whole.value)
    assert resumed.start == "race"
    line = make_line()
    again = search(line.task, resume=True, **asked)
    assert line.spy.forwards == 0
    assert (again.lr, again.steps) == (resumed.lr, resumed.steps)


class Killed(BaseException):
    """In place of a kill."""


@pytest.mark.parametrize("written", [0, 1, 3])
def test_a_process_that_dies_while_probes_are_told_leaves_none_lost_and_none_double(
    make_line: MakeLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    asked: dict[str, Any] = {
        "storage": f"sqlite:///{tmp_path / 'study.db'}",
        "study_name": "kept",
        "tracker": "none",
    }
    whole = search(make_line().task, tracker="none")
    true, count = optuna.Study.add_trial, []

    def add_trial(self: optuna.Study, trial: Any) -> None:
        count.append(1)
        if len(count) > written:
            raise Killed
        true(self, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", add_trial)
        with pytest.raises(Killed):
            search(make_line().task, **asked)
    left = optuna.load_study(study_name="kept", storage=asked["storage"])
    assert len(left.trials) == written
    at = left.user_attrs[RACE]["at"]
    resumed = search(make_line().task, resume=True, **asked)
    assert list(resumed.trials["lr"]) == list(whole.trials["lr"])
    assert list(resumed.trials["reason"]) == list(whole.trials["reason"])
    assert (resumed.lr, resumed.value, resumed.steps) == (whole.lr, whole.value, whole.steps)
    assert resumed.study.user_attrs[RACE]["at"] == at


class Points(NullRun):
    """A tracker that keeps each point as a store does: one of those that agree in all."""

    def __init__(self) -> None:
        self.points: dict[str, set[tuple[str, int, float, int | None]]] = {}
        self.name = ""

    def child(
        self, name: str, *, tags: Any = None, uid: str | None = None, ready: Any = None
    ) -> Points:
        one = Points()
        one.points, one.name = self.points, str(uid)
        return one

    def log_metrics(self, metrics: Any, step: int, *, timestamp: int | None = None) -> None:
        own = self.points.setdefault(self.name, set())
        own.update((key, step, value, timestamp) for key, value in metrics.items())


def test_what_is_told_a_tracker_twice_counts_once(make_line: MakeLine) -> None:
    task = make_line().task
    prepared = prepare(SearchRequest(task=task), task)
    kept = {"uid": "u", "seen": None, "device": "cpu"}
    run, study = Points(), optuna.create_study()
    record_race(study, prepared, run, **kept)  # type: ignore[arg-type]
    once = {name: set(points) for name, points in run.points.items()}
    # The process died before the last probe was told to the study.
    again = optuna.create_study()
    again.set_user_attr(RACE, study.user_attrs[RACE])
    for trial in study.trials[:-1]:
        again.add_trial(trial)
    record_race(again, prepared, run, **kept)  # type: ignore[arg-type]
    assert run.points == once
    assert [t.user_attrs[PROBE] for t in again.trials] == [
        t.user_attrs[PROBE] for t in study.trials
    ]


def test_the_users_own_trouble_in_a_race_takes_no_name_and_is_said(
    make_line: MakeLine, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    with pytest.raises(RuntimeError, match="the user's own trouble"):
        search(make_line(fail_at=5).task, storage=storage, study_name="s", tracker="none")
    assert search(make_line().task, storage=storage, study_name="s", tracker="none").lr > 0.0


def test_running_out_of_memory_in_a_race_is_said_with_the_sizes(make_line: MakeLine) -> None:
    line = make_line()

    class Hungry(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    task = replace(line.task, model=lambda data: Hungry(4, 1))
    with pytest.raises(torch.OutOfMemoryError, match=r"batches of 16 rows.*20\.00 GiB"):
        search(task, tracker="none")


def test_a_taken_name_is_refused_before_the_race(make_line: MakeLine, tmp_path: Path) -> None:
    keep = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "taken"}
    search(make_line(epochs=2).task, tracker="none", **keep)
    line = make_line()
    with pytest.raises(InvalidArgumentError, match="'taken' is taken"):
        search(line.task, tracker="none", **keep)
    assert line.spy.forwards == 0


def test_a_study_of_another_start_is_refused_without_a_race(
    make_line: MakeLine, tmp_path: Path
) -> None:
    keep = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "kept"}
    search(make_line(epochs=2).task, start="bound", tracker="none", **keep)
    line = make_line(epochs=2)
    with pytest.raises(InvalidArgumentError, match="start='bound', not 'race'"):
        search(line.task, resume=True, tracker="none", **keep)
    assert line.spy.forwards == 0


def test_mode_paper_knows_no_race(make_line: MakeLine) -> None:
    assert search(make_line(epochs=4).task, mode="paper", tracker="none").start == "bound"
    with pytest.raises(InvalidArgumentError, match="start must be 'bound' or 'lipschitz'"):
        search(make_line().task, mode="paper", start="race", tracker="none")


def test_a_winner_that_diverges_in_the_long_run_is_followed_by_a_lower_rung(
    make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = running.prepare

    def too_high(*arguments: Any, **named: Any) -> Any:
        prepared = true(*arguments, **named)
        start = Start("race", 1e3 * prepared.start.rate, "a race")
        return true(*arguments, **(named | {"start": start, "data": prepared.data}))

    monkeypatch.setattr(running, "prepare", too_high)
    result = search(make_line().task, tracker="none")
    assert result.trials["reason"].iloc[0] == "diverged"
    assert result.trials["state"].iloc[-1] == "COMPLETE"
    assert result.lr < result.trials["lr"].iloc[0]


@pytest.mark.slow
def test_two_workers_find_what_one_finds_and_tell_each_probe_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = search("worker_tasks:line", trials=3, tracker="none")
    two = search(
        "worker_tasks:line",
        trials=3,
        workers=2,
        storage=f"journal:{tmp_path / 'study.journal'}",
        tracker="none",
    )
    assert (two.lr, two.value, two.val_loss) == (one.lr, one.value, one.val_loss)
    assert list(probes_of(two)["lr"]) == list(probes_of(one)["lr"])
    assert list(probes_of(two)["reason"]) == list(probes_of(one)["reason"])
    trials = two.study.get_trials(deepcopy=False)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(REASON in trial.user_attrs for trial in trials)
    assert STOP_REASON in two.study.user_attrs
