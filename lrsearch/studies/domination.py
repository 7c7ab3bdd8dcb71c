"""A trial on a ladder gives way to a higher rung that was accepted.

Several workers try several rungs at once. Once a rung's rate has passed its test, the training on
the rungs below it would most likely be for nothing: one worker would never have got there.
"""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from lrsearch.studies.attributes import ACCEPTED, DOMINATED, REASON, RUNG
from lrsearch.studies.rungs import read_ladders, read_rung
from lrsearch.windows import WindowStats


def dominator(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> FrozenTrial | None:
    """Return the accepted or completed trial on a higher rung of ``trial``'s ladder, if any.

    Args:
        trials: all trials of the study.
        trial: one of them.
    """
    place = read_rung(trial)
    if place is None or not place.rung:
        return None
    for ladder in read_ladders(trials):
        leader = ladder.leader() if ladder.number == place.ladder else None
        if leader is not None and leader[0] < place.rung:
            return leader[1]
    return None


def dominated_by(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> str | None:
    """Return why ``trial`` is of no more use, in a few words; None if it may be.

    Args:
        trials: all trials of the study.
        trial: one of them.
    """
    leader = dominator(trials, trial)
    return None if leader is None else _words(leader, trial)


def give_way(trial: optuna.trial.BaseTrial, window: WindowStats) -> None:
    """Note that ``trial`` was accepted, or end it for a higher rung that was.

    To be called after each judged window. Reads the study's trials where ``trial`` stands below
    the first rung, and does nothing where it stands on none.

    Raises:
        optuna.TrialPruned: if a trial on a higher rung was accepted or completed.
    """
    place = trial.user_attrs.get(RUNG)
    study = getattr(trial, "study", None)
    if study is None or place is None or place["rung"] is None:
        return
    # A trial that was resumed after its acceptance is past that window.
    if window.decision == "accept" or window.phase == "training":
        accepted = trial.user_attrs.get(ACCEPTED)
        if accepted is None or accepted["trial"] != trial.number:
            mark = {"trial": trial.number, "step": window.last_step}
            trial.set_user_attr(ACCEPTED, mark)
    if place["rung"] == 0:
        return
    pruned = dominated(study, trial)
    if pruned is not None:
        raise pruned


def dominated(study: optuna.Study, trial: optuna.trial.BaseTrial) -> optuna.TrialPruned | None:
    """Return what ends a running ``trial`` for a higher rung, noted on it; None if nothing does.

    Args:
        study: of the trial.
        trial: one that runs in this process.
    """
    trials = study.get_trials(deepcopy=False)
    own = next((each for each in trials if each.number == trial.number), None)
    leader = None if own is None else dominator(trials, own)
    if own is None or leader is None:
        return None
    reason = _words(leader, own)
    trial.set_user_attr(DOMINATED, {"trial": trial.number, "by": leader.number})
    trial.set_user_attr(REASON, reason)
    return optuna.TrialPruned(reason)


def _words(leader: FrozenTrial, trial: FrozenTrial) -> str:
    # On one ladder they differ in the learning rate alone, whatever it is called.
    rates = [
        f"{name}={value:.4g}"
        for name, value in leader.params.items()
        if isinstance(value, float) and value != trial.params.get(name)
    ]
    rate = f" at {', '.join(rates)}" if rates else ""
    what = "completed" if leader.state == TrialState.COMPLETE else "accepted"
    return f"dominated: trial {leader.number}{rate}, a higher rung of the same ladder, was {what}"
