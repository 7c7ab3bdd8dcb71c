"""A worker holds its trial while it lives; what it leaves behind is found, and queued again."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import optuna
import pytest
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.testing.storages import StorageSupplier
from optuna.trial import TrialState

from lrsearch.errors import InvalidArgumentError
from lrsearch.studies import ExpTestSampler, LipschitzSampler, processes, reaper
from lrsearch.studies.attributes import ATTEMPTS, LEASE, MULTIPLIER, REASON, RUNG
from lrsearch.studies.leases import Lease, LeaseRecord, read_lease, use_leases
from lrsearch.studies.patient_storage import PatientStorage
from lrsearch.studies.processes import Process, is_alive, this_process
from lrsearch.studies.reaper import MAX_ATTEMPTS, Reaper, died_over

STORAGES = ["inmemory", "cached_sqlite", "journal", "grpc_rdb", "grpc_journal_file"]
NEVER = 1e6

# Optuna's helper looks for a free port, and leaves the socket open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

ELSEWHERE = Process("other", "0123456789abcdef", 1, 1)


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> Iterator[BaseStorage]:
    with StorageSupplier(request.param) as supplied:
        yield supplied


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The reapers' clock, which a test sets."""
    hands = SimpleNamespace(now=0.0)
    monkeypatch.setattr(reaper, "time", SimpleNamespace(monotonic=lambda: hands.now))
    return hands


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(sampler=RandomSampler(seed=0))


def lease_on(study: optuna.Study, worker: str = "w") -> Lease:
    return Lease(study, worker, beat_seconds=NEVER)


def left_by(study: optuna.Study, number: int, process: Process, beat: int = 0) -> None:
    """Put the lease of another's process on a trial."""
    trial_id = study.trials[number]._trial_id
    record = LeaseRecord("gone", "key", beat, process)
    study._storage.set_trial_user_attr(trial_id, LEASE, record.as_attribute())


def ended_process() -> Process:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    found = this_process()._replace(pid=process.pid, born=processes._born(process.pid))
    assert is_alive(found)
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    return found


# -- processes ----------------------------------------------------------------------------------


def test_this_process_is_alive_and_an_ended_one_is_not() -> None:
    assert is_alive(this_process()) is True
    assert is_alive(ended_process()) is False


def test_a_killed_process_is_gone_before_its_parent_takes_note() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    found = this_process()._replace(pid=process.pid, born=processes._born(process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_alive(found) is False
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def test_another_process_with_the_same_pid_is_another() -> None:
    now = this_process()
    assert now.born is not None
    assert is_alive(now._replace(born=now.born - 1)) is False


def test_a_process_of_another_machine_cannot_be_seen() -> None:
    assert is_alive(ELSEWHERE) is None
    assert is_alive(this_process()._replace(machine="")) is None
    assert is_alive(this_process()._replace(born=None)) is None


# -- leases -------------------------------------------------------------------------------------


def test_a_lease_is_small_and_says_who_holds_the_trial(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    lease = lease_on(study, "w" * 100)
    trial = study.ask()
    assert lease.hold(trial)
    assert lease.still_mine()
    kept = read_lease(study.trials[0])
    assert kept is not None
    assert kept.worker == "w" * 64
    assert kept.process == this_process()
    assert len(json.dumps(kept.as_attribute())) < 300
    study.tell(trial, 1.0)
    lease.release()
    assert study.trials[0].value == 1.0


def test_a_lease_can_be_held_by_the_number_of_the_trial(study: optuna.Study) -> None:
    lease = lease_on(study)
    assert lease.hold(study.ask().number)
    assert lease.still_mine()
    lease.release()


def test_the_lease_beats_and_calls_its_hook(study: optuna.Study) -> None:
    thrice = threading.Event()
    beats: list[int] = []

    def hook() -> None:
        kept = read_lease(study.trials[0])
        assert kept is not None
        beats.append(kept.beat)
        if len(beats) == 3:
            thrice.set()
        raise RuntimeError("the hook's own affair")

    lease = Lease(study, "w", beat_seconds=0.005, on_beat=hook)
    assert lease.hold(study.ask())
    assert thrice.wait(20.0)
    lease.release()
    assert beats[:3] == [1, 2, 3]
    assert not lease.lost.is_set()


def test_a_lease_notices_that_the_trial_is_another_s(study: optuna.Study) -> None:
    lease = Lease(study, "w", beat_seconds=0.005)
    assert lease.hold(study.ask())
    left_by(study, 0, ELSEWHERE)
    assert lease.lost.wait(20.0)
    assert not lease.still_mine()
    lease.release()
    kept = read_lease(study.trials[0])  # the other's is not touched
    assert kept is not None
    assert kept.process == ELSEWHERE


def test_a_lease_notices_that_the_trial_was_finished(study: optuna.Study) -> None:
    lease = Lease(study, "w", beat_seconds=0.005)
    assert lease.hold(study.ask())
    study.tell(0, 1.0)
    assert lease.lost.wait(20.0)
    lease.release()


def test_the_same_worker_does_not_take_another_hold_for_its_own(study: optuna.Study) -> None:
    trial = study.ask()
    before, after = lease_on(study), lease_on(study)
    assert before.hold(trial)
    study._storage.set_trial_user_attr(trial._trial_id, LEASE, None)
    assert after.hold(trial)
    assert not before.still_mine()
    assert after.still_mine()


def test_a_trial_that_somebody_holds_or_that_does_not_run_is_not_held(study: optuna.Study) -> None:
    trial = study.ask()
    first = lease_on(study, "a")
    assert first.hold(trial)
    assert not lease_on(study, "b").hold(trial)
    assert first.still_mine()
    study.tell(trial, 1.0)
    assert not lease_on(study, "b").hold(trial)


def test_a_storage_that_is_away_does_not_end_a_lease(study: optuna.Study) -> None:
    class Away(InMemoryStorage):
        away = False
        asked_away = 0

        def get_trial(self, trial_id: int) -> optuna.trial.FrozenTrial:
            if self.away:
                self.asked_away += 1
                raise ConnectionRefusedError
            return super().get_trial(trial_id)

    storage = Away()
    study = optuna.create_study(storage=storage)
    lease = Lease(study, "w", beat_seconds=0.002)
    assert lease.hold(study.ask())
    storage.away = True
    while storage.asked_away < 3:
        time.sleep(0.002)
    storage.away = False
    kept = read_lease(study.trials[0])
    while (now := read_lease(study.trials[0])) is not None and now == kept:
        time.sleep(0.002)
    assert lease.still_mine()
    lease.release()


def test_a_trial_that_was_not_told_is_left_without_a_lease(study: optuna.Study) -> None:
    with lease_on(study) as lease:
        assert lease.hold(study.ask())
    assert study.trials[0].user_attrs[LEASE] is None
    assert not lease.still_mine()


def test_a_beat_that_lands_on_a_queued_trial_is_taken_back(study: optuna.Study) -> None:
    trial = study.ask()
    lease = lease_on(study)
    assert lease.hold(trial)
    # A reaper queues the trial; a beat that was under way writes the lease again.
    kept = study.trials[0].user_attrs[LEASE]
    study._storage.set_trial_user_attr(trial._trial_id, LEASE, None)
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    study._storage.set_trial_user_attr(trial._trial_id, LEASE, kept)
    assert not lease._beat_on()
    assert lease.lost.is_set()
    assert lease_on(study).hold(study.ask())


@pytest.mark.parametrize("beat_seconds", [0.0, -1.0, float("nan")])
def test_a_beat_is_positive(beat_seconds: float, study: optuna.Study) -> None:
    with pytest.raises(InvalidArgumentError, match="beat_seconds"):
        Lease(study, "w", beat_seconds=beat_seconds)


def test_an_attribute_that_is_no_lease_is_none(study: optuna.Study) -> None:
    study.ask().set_user_attr(LEASE, {"worker": 1})
    assert read_lease(study.trials[0]) is None


# -- the reaper ---------------------------------------------------------------------------------


@pytest.mark.parametrize("patient", [False, True])
def test_the_trial_of_a_process_that_ended_is_queued_at_once(
    patient: bool, storage: BaseStorage
) -> None:
    storage = PatientStorage(storage) if patient else storage
    study = optuna.create_study(storage=storage, sampler=RandomSampler(seed=0))
    trial = study.ask()
    x = trial.suggest_float("x", 0.0, 1.0)
    study.tell(study.ask(), 1.0)  # in memory, nobody below number 1 is thought to wait any more
    left_by(study, 0, ended_process())
    (found,) = Reaper(study).reap()
    assert (found.number, found.state, found.died) == (0, TrialState.WAITING, 1)
    assert "is gone" in found.why
    assert study.trials[0].state == TrialState.WAITING
    assert study.trials[0].user_attrs[ATTEMPTS] == {"died": 1, "last": found.why}
    again = study.ask()
    assert again.number == 0
    assert lease_on(study).hold(again)
    assert again.suggest_float("x", 0.0, 1.0) == x
    study.tell(again, x)
    assert [each.state for each in study.trials] == [TrialState.COMPLETE] * 2
    assert Reaper(study).reap() == []


def test_a_reused_pid_does_not_keep_a_trial(study: optuna.Study) -> None:
    now = this_process()
    assert now.born is not None
    study.ask()
    left_by(study, 0, now._replace(born=now.born - 1))
    assert len(Reaper(study).reap()) == 1


def looks(reaper: Reaper, clock: SimpleNamespace, seconds: float, step: float = 5.0) -> int:
    """How many trials are reaped in looks over ``seconds``."""
    count, end = 0, clock.now + seconds
    while clock.now < end:
        clock.now += step
        count += len(reaper.reap())
    return count


def test_a_worker_elsewhere_is_dead_when_it_was_silent(
    study: optuna.Study, clock: SimpleNamespace
) -> None:
    study.ask()
    watcher = Reaper(study, lease_seconds=60.0)
    for beat in range(5):  # it lives
        left_by(study, 0, ELSEWHERE, beat)
        assert looks(watcher, clock, 55.0) == 0
    assert looks(watcher, clock, 5.0) == 0
    assert looks(watcher, clock, 5.0) == 1


def test_a_slow_worker_on_this_machine_is_left_alone_while_it_lives(
    study: optuna.Study, clock: SimpleNamespace
) -> None:
    lease = lease_on(study)
    assert lease.hold(study.ask())
    watcher = Reaper(study, lease_seconds=60.0)
    assert looks(watcher, clock, 590.0) == 0
    assert lease.still_mine()
    # A process that lives on, as a notebook does, may have forgotten its trial.
    assert looks(watcher, clock, 20.0) == 1
    assert not lease.still_mine()


def test_the_time_in_which_nobody_could_look_does_not_count(
    study: optuna.Study, clock: SimpleNamespace
) -> None:
    study.ask()
    left_by(study, 0, ELSEWHERE)
    watcher = Reaper(study, lease_seconds=60.0)
    watcher.reap()
    clock.now += 3600.0  # the storage was away; the worker has yet to beat
    assert watcher.reap() == []
    clock.now += 25.0
    assert watcher.reap() == []
    left_by(study, 0, ELSEWHERE, beat=1)
    assert looks(watcher, clock, 55.0) == 0


def test_a_trial_without_a_lease_is_reaped_where_all_have_one(
    study: optuna.Study, clock: SimpleNamespace
) -> None:
    by_hand = study.ask()
    watcher = Reaper(study, lease_seconds=60.0)
    assert looks(watcher, clock, 300.0) == 0  # a plain user's
    use_leases(study)
    assert looks(watcher, clock, 60.0) == 0
    assert looks(watcher, clock, 5.0) == 1
    assert study.trials[by_hand.number].state == TrialState.WAITING


def test_who_is_looked_at_can_be_told(study: optuna.Study, clock: SimpleNamespace) -> None:
    study.ask(), study.ask()
    watcher = Reaper(study, lease_seconds=60.0, ours=lambda trial: trial.number == 1)
    assert looks(watcher, clock, 120.0, step=30.0) == 1
    assert [each.state for each in study.trials] == [TrialState.RUNNING, TrialState.WAITING]


def test_a_claim_starts_the_watch_anew(study: optuna.Study, clock: SimpleNamespace) -> None:
    use_leases(study)
    trial = study.ask()
    watcher = Reaper(study, lease_seconds=60.0)
    assert looks(watcher, clock, 60.0) == 0
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    study.ask()
    assert looks(watcher, clock, 60.0) == 0


def test_a_trial_that_kills_its_workers_is_failed_at_last(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    gone = ended_process()
    watcher = Reaper(study)
    for died in range(1, MAX_ATTEMPTS + 1):
        assert study.ask().number == 0
        left_by(study, 0, gone)
        (found,) = watcher.reap()
        assert found.died == died
    assert found.state == TrialState.FAIL
    (trial,) = study.trials
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs[REASON] == "its worker died 5 times"
    assert died_over(trial) == MAX_ATTEMPTS
    assert study.ask().number == 1


def test_a_sampler_that_stops_the_study_does_not_keep_the_reaper(study: optuna.Study) -> None:
    study = optuna.create_study(sampler=GridSampler({"lr": [0.1]}, seed=0))
    trial = study.ask()
    trial.suggest_float("lr", 0.01, 1.0)
    trial.set_user_attr(ATTEMPTS, {"died": MAX_ATTEMPTS - 1, "last": ""})
    left_by(study, 0, ended_process())
    (found,) = Reaper(study).reap()
    assert found.state == study.trials[0].state == TrialState.FAIL


def test_a_reaper_looks_again_before_it_takes(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.ask()
    gone = ended_process()
    left_by(study, 0, gone)
    late, early = Reaper(study), Reaper(study)
    take = late._take
    holder = lease_on(study)

    def overtaken(*args: object) -> object:
        assert len(early.reap()) == 1
        assert holder.hold(study.ask())
        return take(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(late, "_take", overtaken)
    assert late.reap() == []
    assert holder.still_mine()
    assert died_over(study.trials[0]) == 1


# -- samplers -----------------------------------------------------------------------------------


def kept_by_sampler(trial: optuna.Trial) -> dict[str, object]:
    return {name: trial.user_attrs.get(name) for name in (RUNG, MULTIPLIER)}


@pytest.mark.parametrize(
    "sampler",
    [
        RandomSampler(seed=0),
        TPESampler(seed=0, n_startup_trials=1),
        GridSampler({"lr": [0.1, 0.2, 0.3, 0.4], "b": [1, 2]}, seed=0),
        ExpTestSampler(seed=0),
        LipschitzSampler(4.0, multipliers=(1.0, 0.5), seed=0),
        LipschitzSampler(4.0, multipliers=(1.0, 0.5, 0.1), tries=True, seed=0),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_a_queued_trial_keeps_its_parameters(sampler: BaseSampler, storage: BaseStorage) -> None:
    sampler = copy.deepcopy(sampler)  # a base sampler knows one study
    study = optuna.create_study(storage=storage, sampler=sampler)
    study.tell(study.ask(), 1.0)
    trial = study.ask()
    lr = trial.suggest_float("lr", 0.01, 1.0)
    b = trial.suggest_int("b", 1, 2)
    attributes = kept_by_sampler(trial)
    left_by(study, 1, ended_process())
    Reaper(study).reap()
    again = study.ask()
    assert again.number == 1
    assert again.params == {"lr": lr, "b": b}
    assert again.suggest_float("lr", 0.01, 1.0) == lr
    assert again.suggest_int("b", 1, 2) == b
    assert kept_by_sampler(again) == attributes
    study.tell(again, 0.5)
    other = study.ask()
    assert other.number == 2


def test_a_grid_is_covered_though_workers_die(study: optuna.Study) -> None:
    space = {"lr": [0.1, 0.2, 0.3, 0.4]}
    study = optuna.create_study(sampler=GridSampler(space, seed=0))
    gone = ended_process()
    for number in range(4):
        trial = study.ask()
        if number % 2:  # dies before it asked for a rate
            left_by(study, trial.number, gone)
            Reaper(study).reap()
            trial = study.ask()
        with contextlib.suppress(RuntimeError):  # the grid stops a loop that is not there
            study.tell(trial, trial.suggest_float("lr", 0.01, 1.0))
    assert sorted(each.params["lr"] for each in study.trials) == space["lr"]
