"""Taking trials from a study one by one, without ``study.optimize``.

Optuna's storages have two atomic steps: a new trial gets a number of its own, and a waiting trial
is set to running by one worker alone. ``study.ask`` does either; a worker that must not begin a
trial too many needs to say which.
"""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.studies.attributes import REASON


def _hold_nothing(trial_id: int) -> bool:
    return True


def claim_waiting(
    study: optuna.Study,
    wanted: Callable[[FrozenTrial], bool] = lambda trial: True,
    hold: Callable[[int], bool] = _hold_nothing,
) -> Trial | None:
    """Take a waiting trial, the one of the lowest number first; None if there is none to be had.

    Args:
        study: whose trial.
        wanted: which ones may be taken.
        hold: is told the id of the one that was taken before the sampler is; False leaves that
            trial alone.
    """
    storage = study._storage
    waiting = storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.WAITING,))
    for trial in sorted(waiting, key=lambda each: each.number):
        if not wanted(trial):
            continue
        try:
            mine = storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            continue
        if mine and hold(trial._trial_id):
            return _begun(study, trial._trial_id)
    return None


def drop_waiting(study: optuna.Study, wanted: Callable[[FrozenTrial], bool], reason: str) -> None:
    """End waiting trials as pruned without running them; the sampler gives them nothing.

    Args:
        study: whose trials.
        wanted: which ones are dropped.
        reason: why, for whoever looks at them.
    """
    storage = study._storage
    waiting = storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.WAITING,))
    for trial in filter(wanted, waiting):
        try:
            if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                end_unused(study, trial, reason)
        except UpdateFinishedTrialError:
            continue


def end_unused(study: optuna.Study, trial: FrozenTrial | Trial, reason: str) -> None:
    """End a running trial as pruned that was not run; the sampler is told.

    Raises:
        UpdateFinishedTrialError: if it has ended already.
    """
    study._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
    study.tell(trial.number, state=TrialState.PRUNED)


def begin_new(study: optuna.Study, hold: Callable[[int], bool] = _hold_nothing) -> Trial | None:
    """Begin a trial that was not there before; None if it could not be held.

    Args:
        study: whose trial.
        hold: is told its id before the sampler is; False leaves the trial alone.
    """
    trial_id = study._storage.create_new_trial(study._study_id)
    return _begun(study, trial_id) if hold(trial_id) else None


def give_back(study: optuna.Study, trial: Trial) -> None:
    """Let another worker take a running trial; nothing if it has ended meanwhile."""
    try:
        study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    except UpdateFinishedTrialError:
        return


def _begun(study: optuna.Study, trial_id: int) -> Trial:
    # As study.ask does: samplers must not see the trials of the time before.
    study._thread_local.cached_all_trials = None
    return Trial(study, trial_id)
