"""A trial whose worker died before it took a rung: as good as a new one, and no better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from lrsearch import search
from lrsearch.engine.result import SearchResult
from lrsearch.engine.workers.loop import NO_RUNG
from lrsearch.studies import ExpTestSampler
from lrsearch.studies.attributes import RUNG
from lrsearch.studies.leases import Lease, read_lease
from lrsearch.studies.storages import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"journal:{tmp_path / 'study.journal'}"


def run(storage: str, **options: Any) -> SearchResult:
    return search(
        "worker_tasks:line",
        start="bound",
        storage=storage,
        study_name="s",
        resume=True,
        tracker="none",
        **options,
    )


def add_spare(storage: str) -> None:
    """A trial that was begun, and queued again."""
    opened = open_storage(storage)
    study = optuna.create_study(study_name="s", storage=opened, load_if_exists=True)
    number = opened.create_new_trial(study._study_id)
    opened.set_trial_state_values(number, TrialState.WAITING)


def test_it_takes_the_next_rung_in_place_of_a_new_trial(storage: str, tmp_path: Path) -> None:
    alone = run(f"journal:{tmp_path / 'alone.journal'}")
    add_spare(storage)
    result = run(storage)
    assert list(result.trials["lr"]) == list(alone.trials["lr"])
    assert (result.lr, result.steps) == (alone.lr, alone.steps)


def test_it_is_not_trained_once_the_study_is_decided(storage: str) -> None:
    decided = run(storage)
    add_spare(storage)
    result = run(storage)
    assert (result.lr, result.value, result.steps) == (decided.lr, decided.value, decided.steps)
    spare = result.study.trials[-1]
    assert (spare.state, spare.params) == (TrialState.PRUNED, {})
    assert result.trials["reason"].iloc[-1] == NO_RUNG
    assert len(result.trials) == len(decided.trials) + 1


def test_a_trial_that_came_too_late_for_a_rung_is_not_trained(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another worker's trial was accepted between the look at the study and the new trial.
    late = []
    true = ExpTestSampler.before_trial

    def before_trial(self: ExpTestSampler, study: optuna.Study, trial: Any) -> None:
        true(self, study, trial)
        if not late:
            late.append(trial.number)
            place = {"ladder": 0, "rung": None}
            study._storage.set_trial_user_attr(trial._trial_id, RUNG, place)
            trial.user_attrs[RUNG] = place

    monkeypatch.setattr(ExpTestSampler, "before_trial", before_trial)
    result = run(storage)
    assert late == [0]
    assert result.trials["reason"].iloc[0] == NO_RUNG
    assert result.trials["steps"].iloc[0] == 0
    assert result.trials["state"].iloc[-1] == "COMPLETE"


def test_a_ladder_that_begins_as_the_study_is_decided_is_not_gone_on_with(storage: str) -> None:
    # Its worker asked for a rung when the last trial had just completed, and then died.
    decided = run(storage)
    add_spare(storage)
    opened = open_storage(storage)
    study = optuna.load_study(study_name="s", storage=opened)
    spare = study.trials[-1]
    place = {"ladder": spare.number, "rung": 0}
    opened.set_trial_state_values(spare._trial_id, TrialState.RUNNING)
    opened.set_trial_user_attr(spare._trial_id, RUNG, place)
    opened.set_trial_state_values(spare._trial_id, TrialState.WAITING)
    result = run(storage)
    assert result.trials["reason"].iloc[-1] == NO_RUNG
    assert (result.lr, result.steps) == (decided.lr, decided.steps)


def test_while_all_rungs_are_tried_a_trial_without_one_waits_too(storage: str) -> None:
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1), storage=open_storage(storage))
    trial = study.ask()
    trial.suggest_float("lr", 0.5, 1.0, log=True)
    number = study._storage.create_new_trial(study._study_id)
    study._storage.set_trial_state_values(number, TrialState.WAITING)
    assert isinstance(study.sampler, ExpTestSampler)
    assert study.sampler.waits(study)


def test_a_worker_holds_its_trial_before_it_takes_a_rung(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It may wait for others there, and is not to be taken for dead meanwhile.
    add_spare(storage)
    held: list[bool] = []
    true = ExpTestSampler.before_trial

    def before_trial(self: ExpTestSampler, study: optuna.Study, trial: Any) -> None:
        held.append(read_lease(study._storage.get_trial(trial._trial_id)) is not None)
        true(self, study, trial)

    monkeypatch.setattr(ExpTestSampler, "before_trial", before_trial)
    result = run(storage)
    assert held == [True] * len(result.trials)


def test_a_worker_that_could_not_hold_its_new_trial_does_not_take_the_study_for_over(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outrun = []
    true = Lease.hold_id

    def hold_id(self: Lease, trial_id: int) -> bool:
        if not outrun:  # a reaper has queued it again, so early
            outrun.append(trial_id)
            self._storage.set_trial_state_values(trial_id, TrialState.WAITING)
        return true(self, trial_id)

    monkeypatch.setattr(Lease, "hold_id", hold_id)
    result = run(storage)
    assert outrun
    assert result.trials["state"].iloc[-1] == "COMPLETE"


def test_a_worker_whose_sampler_fails_holds_nothing(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def before_trial(self: ExpTestSampler, study: optuna.Study, trial: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ExpTestSampler, "before_trial", before_trial)
    with pytest.raises(ZeroDivisionError):
        run(storage)
    (trial,) = optuna.load_study(study_name="s", storage=open_storage(storage)).trials
    assert trial.state == TrialState.RUNNING
    assert read_lease(trial) is None


def test_a_worker_whose_trial_was_ended_by_another_before_it_had_a_rung_goes_on(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = []
    true = ExpTestSampler.before_trial

    def before_trial(self: ExpTestSampler, study: optuna.Study, trial: Any) -> None:
        if not lost:
            lost.append(trial.number)
            study._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED)
        true(self, study, trial)

    monkeypatch.setattr(ExpTestSampler, "before_trial", before_trial)
    result = run(storage)
    assert lost == [0]
    assert list(result.trials["state"])[-1] == "COMPLETE"
