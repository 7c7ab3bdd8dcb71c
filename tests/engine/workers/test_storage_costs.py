"""What a study asks of its storage, counted: docs/scaling.md gives these numbers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import optuna
import pytest
import worker_tasks
from counting import Call, Calls, counted
from optuna.trial import TrialState

from lrsearch import TrainingTask
from lrsearch.engine.methods import fill_queue, make_study
from lrsearch.engine.progress import SilentWatcher
from lrsearch.engine.request import SearchRequest, prepare
from lrsearch.engine.workers.loop import Worker
from lrsearch.engine.workers.running import make_worker
from lrsearch.engine.workers.spec import Durability
from lrsearch.studies.attributes import ACCEPTED
from lrsearch.studies.leases import Lease, use_leases
from lrsearch.studies.reaper import Reaped
from lrsearch.studies.storages import open_storage
from lrsearch.tracking import NullRun

# Of a trial, from the look for the dead before it to the next one.
QUEUED, REJECTED, COMPLETE = 20, 27, 31  # a completed rung: and those of its windows
WINDOW = ["set_trial_user_attr", "set_trial_intermediate_value", "get_all_trials"]
BEAT = ["get_trial", "set_trial_user_attr"]
QUEUED_POLL, LADDER_POLL = 3, 5
# Bytes that a journal grows by.
TRIAL_BYTES, WINDOW_BYTES, BEAT_BYTES = 2000, 480, 400


@dataclass
class Counted:
    """A worker, and the calls of its study's storage."""

    worker: Worker
    calls: Calls
    journal: Path

    @property
    def study(self) -> optuna.Study:
        return self.worker.study


Make = Callable[..., Counted]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(
        task: TrainingTask,
        method: str,
        *,
        factor: float = 1.0,
        beat_seconds: float = 1000.0,
        **options: int,
    ) -> Counted:
        journal = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}.journal"
        storage, calls = counted(open_storage(f"journal:{journal}"))
        begin = "bound" if method == "exptest" else None
        request = SearchRequest(task=task, method=method, start=begin, **options)  # type: ignore[arg-type]
        found = prepare(request, request.resolved())
        start = replace(found.start, rate=factor * found.start.rate)
        prepared = prepare(request, request.resolved(), data=found.data, start=start)
        study = make_study(prepared.plan, name="s", storage=storage, resume=False)
        use_leases(study)
        fill_queue(study, prepared.plan)
        worker = make_worker(
            prepared,
            study,
            NullRun(),
            watcher=SilentWatcher(),
            uid="u",
            keep_model=False,
            device="cpu",
            max_failures=3,
            durable=Durability(tmp_path / "checkpoints", beat_seconds=beat_seconds),
            stop=threading.Event(),
        )
        return Counted(worker, calls, journal)

    return made


class StopAfter(threading.Event):
    """Does not sleep, and is set after so many naps."""

    def __init__(self, naps: int) -> None:
        super().__init__()
        self._left = naps

    def wait(self, timeout: float | None = None) -> bool:
        self._left -= 1
        if self._left == 0:
            self.set()
        return self.is_set()


def run_in_turns(at: Counted, monkeypatch: pytest.MonkeyPatch) -> list[list[Call]]:
    """Run the worker; the calls from each look for the dead to the next."""
    reaper = at.worker.reaper
    assert reaper is not None
    reap, begun = reaper.reap, []

    def marked() -> list[Reaped]:
        begun.append(len(at.calls))
        return reap()

    monkeypatch.setattr(reaper, "reap", marked)
    assert at.worker.run()
    return [at.calls.made[a:b] for a, b in pairwise([*begun, len(at.calls)])]


@pytest.mark.parametrize("epochs", [5, 50])
def test_a_queued_trial_asks_its_storage_the_same_however_long_it_is(
    make: Make, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    at = make(worker_tasks.line(), "grid", epochs=epochs, trials=3, factor=0.01)
    *turns, last = run_in_turns(at, monkeypatch)
    assert [trial.state for trial in at.study.trials] == [TrialState.COMPLETE] * 3
    assert [len(turn) for turn in turns] == [QUEUED] * 3
    assert sum(call.method == "get_all_trials" for call in turns[0]) == 3
    assert len(last) == QUEUED_POLL


def test_a_window_asks_its_storage_three_times(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    at = make(worker_tasks.line(), "exptest", factor=30.0)
    before = at.journal.stat().st_size
    *rejected, complete, last = run_in_turns(at, monkeypatch)
    grown = at.journal.stat().st_size - before
    states = [trial.state for trial in at.study.trials]
    assert states == [TrialState.PRUNED] * len(rejected) + [TrialState.COMPLETE]
    assert len(rejected) >= 2
    assert [len(turn) for turn in rejected] == [REJECTED] * len(rejected)
    windows = sum(row["trial"] == len(rejected) for row in at.worker.objective.windows)
    assert windows >= 4
    assert len(complete) == COMPLETE + windows * len(WINDOW)
    methods = [call.method for call in complete]
    assert any(methods[place : place + 6] == 2 * WINDOW for place in range(len(methods)))
    assert len(last) <= LADDER_POLL
    assert grown <= len(states) * TRIAL_BYTES + (windows + len(rejected)) * WINDOW_BYTES


@pytest.mark.parametrize(("method", "more"), [("grid", []), ("exptest", ["get_all_trials"])])
def test_a_beat_is_two_questions_and_on_a_ladder_one_more(
    make: Make, method: str, more: list[str]
) -> None:
    at = make(worker_tasks.slow_line(), method, epochs=6, trials=1, beat_seconds=0.02)
    at.worker.run()
    beating = [call for call in at.calls.made if call.thread == "lrsearch-lease"]
    methods = [call.method for call in beating]
    beats = methods.count("set_trial_user_attr")
    assert beats >= 2
    expected = BEAT + more
    assert methods[: 2 * len(expected)] == 2 * expected
    assert len(methods) <= (beats + 1) * len(expected)
    lines = [line for line in at.journal.read_bytes().splitlines() if b"lrsearch:lease" in line]
    assert max(map(len, lines)) + 1 <= BEAT_BYTES


@pytest.mark.parametrize(("method", "expected"), [("grid", QUEUED_POLL), ("exptest", LADDER_POLL)])
def test_a_worker_that_waits_asks_little(make: Make, method: str, expected: int) -> None:
    at = make(worker_tasks.line(), method, trials=1 if method == "grid" else 5)
    trial = at.study.ask()
    with Lease(at.study, "another", beat_seconds=1000.0) as lease:
        assert lease.hold(trial)
        trial.suggest_float("lr", at.worker.plan.low, at.worker.plan.high, log=True)
        if method == "exptest":  # nothing below it is worth a try
            trial.set_user_attr(ACCEPTED, {"trial": trial.number, "step": 1})
        at.worker.stop = StopAfter(3)
        with at.calls.within() as polls:
            assert at.worker.run() is False
    assert len(at.study.trials) == 1
    assert len(polls) == 3 * expected
    writes = Counter(call.method for call in polls.made if call.method.startswith("set_"))
    assert not writes
