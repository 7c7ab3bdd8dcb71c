"""Workers and reapers in every order that a seed can find: each trial is told once, none is lost.

The actors take turns, one question to the storage at a time; a seeded scheduler says who is next,
and who dies.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from lrsearch.studies import leases, reaper
from lrsearch.studies.journal import JournalFile, SharedJournal
from lrsearch.studies.leases import Lease, use_leases
from lrsearch.studies.patient_storage import PatientStorage
from lrsearch.studies.processes import Process
from lrsearch.studies.reaper import MAX_ATTEMPTS, Reaper, died_over

TRIALS = 4
WORKERS = 3
REAPERS = 2
DEATHS = 4
TURNS = 200_000


class Died(BaseException):
    """A kill, which no handler of the code under test catches."""


class Actor:
    def __init__(self, name: int, act: Callable[[Actor], None], mortal: bool) -> None:
        self.name, self.mortal = name, mortal
        self.process = Process("h", "m", name, 1)
        self.dies = False
        self.error: BaseException | None = None
        self.turn, self.waits = threading.Semaphore(0), threading.Semaphore(0)
        self.ended = False
        self._act = act
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.waits.acquire()

    def _run(self) -> None:
        current.actor = self
        try:
            self.pause()
            self._act(self)
        except Died:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self.waits.release()

    def pause(self) -> None:
        """Wait for the next turn, or die."""
        self.waits.release()
        self.turn.acquire()
        if self.dies:
            raise Died

    def go(self) -> None:
        self.turn.release()
        self.waits.acquire()
        if self.error is not None:
            raise self.error


current = threading.local()


class TakingTurns(PatientStorage):
    """A storage that its actor asks one question a turn; notes who told which trial."""

    def __init__(self, storage: BaseStorage, told: Counter[int]) -> None:
        super().__init__(storage)
        self._told = told

    def _ask(self, call: Callable[[], Any]) -> Any:
        current.actor.pause()
        return call()

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        answer = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            self._told[trial_id] += 1
        return answer


def check(seed: int, opened: Callable[[], BaseStorage], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one order of events; returns how many workers died or lost their trial."""
    rng = random.Random(seed)
    first = opened()
    study = optuna.create_study(storage=first, study_name="s", sampler=RandomSampler(seed=0))
    use_leases(study)
    for number in range(TRIALS):
        study.enqueue_trial({"x": number})
    told: Counter[int] = Counter()
    alive: set[int] = set()
    seen = SimpleNamespace(now=0.0, lost=0)

    def clock() -> float:
        seen.now += 10.0
        return float(seen.now)

    monkeypatch.setattr(reaper, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(reaper, "is_alive", lambda process: process.pid in alive)
    monkeypatch.setattr(leases, "this_process", lambda: current.actor.process)

    def own_study() -> optuna.Study:
        own = optuna.load_study(study_name="s", storage=opened(), sampler=RandomSampler(seed=0))
        own._storage = TakingTurns(own._storage, told)
        return own

    def all_told() -> bool:
        return all(each.state.is_finished() for each in first.get_all_trials(study._study_id))

    def work(actor: Actor) -> None:
        own = own_study()
        lease = Lease(own, f"w{actor.name}", beat_seconds=1e6)
        while not all_told():
            trial_id = own._pop_waiting_trial_id()
            if trial_id is None:
                continue
            trial = optuna.Trial(own, trial_id)
            if not lease.hold(trial):
                continue
            for _ in range(rng.randrange(3)):
                if not lease._beat_on():
                    break
            try:
                if lease.still_mine():
                    trial.suggest_int("x", 0, TRIALS)
                    own.tell(trial, float(actor.name))
                else:
                    seen.lost += 1
            except (UpdateFinishedTrialError, ValueError):
                seen.lost += 1  # told, or queued again, since it was asked whose it is
            lease.release()

    def watch(actor: Actor) -> None:
        own = own_study()
        watcher = Reaper(own)
        while not all_told():
            watcher.reap()

    names = iter(range(1000))

    def spawn(act: Callable[[Actor], None], mortal: bool) -> Actor:
        name = next(names)
        alive.add(name)
        return Actor(name, act, mortal)

    actors = [spawn(work, True) for _ in range(WORKERS)] + [
        spawn(watch, False) for _ in range(REAPERS)
    ]
    deaths = 0
    for _ in range(TURNS):
        actors = [each for each in actors if not each.ended]
        if not actors:
            break
        actor = rng.choice(actors)
        if actor.mortal and deaths < DEATHS and rng.random() < 0.04:
            deaths += 1
            actor.dies = True
            alive.discard(actor.name)
            actors.append(spawn(work, True))
        actor.go()
    assert not actors, "it went on for ever"
    trials = first.get_all_trials(study._study_id)
    assert len(trials) == TRIALS
    assert told == Counter({each._trial_id: 1 for each in trials})
    for each in trials:
        assert each.state == TrialState.COMPLETE or died_over(each) == MAX_ATTEMPTS
        assert each.state == TrialState.FAIL or each.params == {"x": each.number}
    return deaths + int(seen.lost)


def test_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    eventful = 0
    for seed in range(40):
        storage = InMemoryStorage()
        eventful += check(seed, lambda: storage, monkeypatch) > 1  # noqa: B023
    assert eventful > 20


@pytest.mark.parametrize("kind", [SharedJournal, JournalStorage])
def test_on_a_journal(
    kind: type[JournalStorage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(6):
        path = str(tmp_path / str(seed))

        def opened(path: str = path) -> BaseStorage:
            if kind is SharedJournal:
                return SharedJournal(JournalFile(path))
            return JournalStorage(JournalFileBackend(path))

        check(seed, opened, monkeypatch)
