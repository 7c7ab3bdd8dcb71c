"""ExpTestSampler among workers: every rung is claimed once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.studies import ExpTestSampler, ladder_sampler
from lrsearch.studies.attributes import ATTEMPTS, RUNG, STOP_REASON


def rungs(study: optuna.Study) -> list[tuple[int, int | None]]:
    places = [trial.user_attrs[RUNG] for trial in study.trials]
    return [(place["ladder"], place["rung"]) for place in places]


def always_pruned(trial: Trial) -> float:
    trial.suggest_float("momentum", 0.0, 0.99)
    trial.suggest_float("lr", 1e-9, 1.0, log=True)
    time.sleep(0.002)
    raise optuna.TrialPruned


def assert_each_rung_once(study: optuna.Study, count: int, beta: float) -> None:
    assert sorted(rungs(study)) == [(0, k) for k in range(count)]
    lrs = sorted((trial.params["lr"] for trial in study.trials), reverse=True)
    assert lrs == pytest.approx([beta**k for k in range(count)], rel=1e-9)
    assert len({trial.params["momentum"] for trial in study.trials}) == 1


def test_eight_threads_claim_each_rung_once() -> None:
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.8))
    study.optimize(always_pruned, n_trials=64, n_jobs=8)
    assert_each_rung_once(study, 64, 0.8)


WORKER = """
import sys, time
import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from lrsearch.studies import ExpTestSampler

kind, path, trials = sys.argv[1], sys.argv[2], int(sys.argv[3])
storage = RDBStorage("sqlite:///" + path) if kind == "sqlite" else JournalStorage(
    JournalFileBackend(path))
study = optuna.load_study(study_name="rungs", storage=storage, sampler=ExpTestSampler(beta=0.8))

def objective(trial):
    trial.suggest_float("momentum", 0.0, 0.99)
    trial.suggest_float("lr", 1e-9, 1.0, log=True)
    raise optuna.TrialPruned

print("ready", flush=True)
sys.stdin.readline()
study.optimize(objective, n_trials=trials)
"""


@pytest.mark.parametrize(("kind", "trials"), [("journal", 8), ("sqlite", 3)])
def test_four_processes_claim_each_rung_once(kind: str, trials: int, tmp_path: Path) -> None:
    path = str(tmp_path / "storage")
    rdb = RDBStorage(f"sqlite:///{path}") if kind == "sqlite" else None
    storage: BaseStorage = rdb or JournalStorage(JournalFileBackend(path))
    study = optuna.create_study(storage=storage, study_name="rungs")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, kind, path, str(trials)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    assert_each_rung_once(study, 4 * trials, 0.8)
    if rdb is not None:
        rdb.engine.dispose()


def unborn_trial(study: optuna.Study) -> FrozenTrial:
    """Return a trial whose row exists, whose worker has not recorded a rung yet."""
    return study._storage.get_trial(study._storage.create_new_trial(study._study_id))


def test_a_new_trial_waits_for_the_rung_of_an_older_one() -> None:
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
    elder = unborn_trial(study)
    with ThreadPoolExecutor(1) as pool:
        younger = pool.submit(study.ask)
        time.sleep(0.1)
        assert not younger.done()
        study.sampler.before_trial(study, elder)
        assert younger.result(timeout=1.0).number == 1
    assert rungs(study) == [(0, 0), (0, 1)]


def test_parameters_do_not_stand_in_for_a_rung() -> None:
    # SQLite showed this to a reader: it read the attributes, then the worker wrote its rung and
    # its parameters, then it read the parameters.
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
    elder = unborn_trial(study)
    study._storage.set_trial_param(elder._trial_id, "momentum", 0.5, FloatDistribution(0.0, 1.0))
    with ThreadPoolExecutor(1) as pool:
        younger = pool.submit(study.ask)
        time.sleep(0.1)
        study.sampler.before_trial(study, elder)
        younger.result(timeout=1.0)
    assert rungs(study) == [(0, 0), (0, 1)]


def test_a_trial_does_not_wait_for_younger_ones_nor_for_the_queue() -> None:
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
    study.enqueue_trial({"lr": 0.5})
    study.enqueue_trial({"momentum": 0.5})
    queued = [study.ask(), study.ask()]
    first = unborn_trial(study)
    unborn_trial(study)
    start = time.monotonic()
    study.sampler.before_trial(study, first)
    assert time.monotonic() - start < 0.5 * ladder_sampler._PATIENCE_SECONDS
    assert first.user_attrs[RUNG] == {"ladder": 1, "rung": 1}
    assert RUNG not in queued[0].user_attrs


def test_a_worker_that_died_at_birth_is_awaited_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder_sampler, "_PATIENCE_SECONDS", 0.2)
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
    unborn_trial(study)
    start = time.monotonic()
    study.ask()
    first = time.monotonic() - start
    for _ in range(20):
        study.ask()
    assert first >= 0.2
    assert time.monotonic() - start - first < 2.0


def test_a_younger_trial_waits_for_what_its_leader_is_about_to_suggest() -> None:
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
    leader, younger = study.ask(), study.ask()
    with ThreadPoolExecutor(1) as pool:
        momentum = pool.submit(younger.suggest_float, "momentum", 0.0, 0.99)
        time.sleep(0.1)
        assert not momentum.done()
        expected = leader.suggest_float("momentum", 0.0, 0.99)
        assert momentum.result(timeout=1.0) == expected


class Clock:
    """Time that passes while somebody sleeps, and what happens at a moment of it."""

    def __init__(self, at: float, event: Callable[[], None]) -> None:
        self.now, self._at, self._event = 0.0, at, event

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        before, self.now = self.now, self.now + seconds
        if before < self._at <= self.now:
            self._event()


def record_rung(study: optuna.Study, trial: FrozenTrial, ladder: int, rung: int) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, RUNG, {"ladder": ladder, "rung": rung})


def queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """As a reaper does."""
    died = {"died": 1, "last": "gone"}
    study._storage.set_trial_user_attr(trial._trial_id, ATTEMPTS, died)
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


@pytest.mark.parametrize("known", [False, True])
def test_whoever_waits_for_a_dead_worker_is_given_the_time_for_it(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    patience = ladder_sampler._PATIENCE_SECONDS
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
    unborn_trial(study)  # its worker has died
    if known:  # this process has waited for it before, and begun ladder 1
        monkeypatch.setattr(ladder_sampler, "time", Clock(0.0, lambda: None))
        study.ask()
    slow = unborn_trial(study)
    rung = int(known)
    clock = Clock(patience + 0.06, lambda: record_rung(study, slow, 1, rung))
    monkeypatch.setattr(ladder_sampler, "time", clock)
    assert study.ask().user_attrs[RUNG] == {"ladder": 1, "rung": rung + 1}


def test_a_trial_that_was_given_up_is_awaited_again_once_it_has_another_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
    dead = unborn_trial(study)
    monkeypatch.setattr(ladder_sampler, "time", Clock(0.0, lambda: None))
    assert study.ask().user_attrs[RUNG] == {"ladder": 1, "rung": 0}
    queue_again(study, dead)
    study._storage.set_trial_state_values(dead._trial_id, TrialState.RUNNING)
    clock = Clock(0.05, lambda: record_rung(study, dead, 1, 1))
    monkeypatch.setattr(ladder_sampler, "time", clock)
    assert study.ask().user_attrs[RUNG] == {"ladder": 1, "rung": 2}


@pytest.mark.parametrize("spares", [1, 2])
def test_a_trial_that_was_queued_again_waits_for_those_that_did_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, spares: int
) -> None:
    """They have looked while it waited in the queue, and are about to record their rung."""
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
    storage = study._storage
    dead = [unborn_trial(study) for _ in range(spares)]
    for each in dead:
        queue_again(study, each)
    last = unborn_trial(study)
    true_record, true_sleep = ladder_sampler._record, time.sleep
    waits = threading.Event()

    def claim(trial: FrozenTrial) -> None:
        storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        study.sampler.before_trial(study, storage.get_trial(trial._trial_id))
        waits.set()

    def sleep(seconds: float) -> None:
        waits.set()
        true_sleep(seconds)

    with ThreadPoolExecutor(spares) as pool:
        left, claims = dead.copy(), []

        def record(study: optuna.Study, trial: FrozenTrial, name: str, value: object) -> None:
            # Each is caught before it tells its rung, by the next one, of a lower number.
            if name == RUNG and left:
                waits.clear()
                claims.append(pool.submit(claim, left.pop()))
                assert waits.wait(10.0)
            true_record(study, trial, name, value)

        monkeypatch.setattr(ladder_sampler, "_record", record)
        monkeypatch.setattr(ladder_sampler.time, "sleep", sleep)
        study.sampler.before_trial(study, last)
        for each in claims:
            each.result(timeout=10.0)
    assert sorted(rungs(study)) == [(spares, rung) for rung in range(spares + 1)]


def test_a_rung_that_another_worker_has_taken_for_the_same_trial_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A late reaper gave the trial to another worker while this one waited."""
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
    elder, trial = unborn_trial(study), unborn_trial(study)

    def event() -> None:
        record_rung(study, elder, 0, 0)
        record_rung(study, trial, 0, 7)

    monkeypatch.setattr(ladder_sampler, "time", Clock(0.05, event))
    study.sampler.before_trial(study, trial)
    assert trial.user_attrs[RUNG] == {"ladder": 0, "rung": 7}
    assert rungs(study) == [(0, 0), (0, 7)]


def test_a_leader_that_never_suggests_is_awaited_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ladder_sampler, "_PATIENCE_SECONDS", 0.1)
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
    study.ask()
    assert 0.0 <= study.ask().suggest_float("momentum", 0.0, 0.99) <= 0.99


def test_a_worker_below_the_range_explores_inside_it() -> None:
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1, seed=0))
    # All born before any has told the range, as eight threads are.
    born = [study.ask() for _ in range(5)]
    lrs = [trial.suggest_float("lr", 1e-2, 1.0, log=True) for trial in born]
    assert lrs[:3] == pytest.approx([1.0, 0.1, 0.01])
    assert rungs(study) == [(0, 0), (0, 1), (0, 2), (0, None), (0, None)]
    # Now that the range is known, a newcomer does not repeat a rate that is still being tried.
    late = study.ask()
    lrs.append(late.suggest_float("lr", 1e-2, 1.0, log=True))
    assert all(1e-2 <= lr <= 1.0 for lr in lrs)
    assert len(set(lrs)) == 6
    # What it finds there is no rung: the study goes on until the ladder is decided.
    study.tell(late, 1.0)
    for trial in born[:3]:
        assert STOP_REASON not in study.user_attrs
        study.tell(trial, state=TrialState.PRUNED)
    assert "no lr from the suggested range is left" in study.user_attrs[STOP_REASON]
