"""Reports to a study's pruner, each step once, whoever goes on with the trial."""

from __future__ import annotations

from typing import Any

import optuna


class Reporter:
    """Reports values, and asks the study's pruner.

    A trial that is gone on with may have reports that come later than the step where it goes on.
    Whoever made them was let pass at each but the last: the pruner is not asked about those again,
    since it would judge them by the later ones.

    Args:
        trial: the running trial (or a ``FixedTrial``).
    """

    def __init__(self, trial: optuna.trial.BaseTrial) -> None:
        self._trial = trial
        self._known = _reported_steps(trial)
        self._last = max(self._known, default=-1)
        self._told = -1

    def rejects(self, value: float, step: int) -> bool:
        """Whether the pruner ends the trial with this value, the first of its step."""
        if step == self._told:
            return False
        self._told = step
        if step not in self._known:
            self._trial.report(value, step)
        elif step < self._last:
            return False
        return self._trial.should_prune()


def _reported_steps(trial: optuna.trial.BaseTrial) -> frozenset[int]:
    """Steps that a trial has reports of from its beginning on, in this process or another."""
    # Optuna shows a running trial its own reports through the study alone, a round trip away.
    begun: Any = getattr(trial, "_cached_frozen_trial", None)
    return frozenset() if begun is None else frozenset(begun.intermediate_values)
