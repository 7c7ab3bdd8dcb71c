"""What one trial tells its study's storage: little, and enough to see why it ended."""

from __future__ import annotations

from typing import NoReturn

import optuna

from lrsearch.studies.attributes import PVALUE, REASON, WINDOW_PREFIX
from lrsearch.studies.domination import give_way
from lrsearch.studies.reporting import Reporter
from lrsearch.windows import WindowStats

# Windows that end nothing are thinned out, so that a trial of 10 000 steps writes at most 100 rows:
# all of the first few, then one whenever the run has grown by a fifth.
_FIRST = 8
_GROWTH = 1.2
_MANY = 32  # decays are few, unless beta is near 1


class TrialRecorder:
    """Writes windows to a trial: one attribute, one report and one ``should_prune`` each.

    The attributes' numbers follow from the steps at which windows ended. A trial that is gone on
    with, from any point or from the start, writes over those that its last process wrote since.

    Args:
        trial: the running trial (or a ``FixedTrial``).
    """

    def __init__(self, trial: optuna.trial.BaseTrial) -> None:
        self._trial = trial
        study = getattr(trial, "study", None)
        # Reports need a single objective (Optuna raises otherwise); attributes do not.
        single = study is None or len(study.directions) == 1
        self._reporter = Reporter(trial) if single else None
        # Where the windows ended that are written.
        self._stops = sorted(
            int(value["stop"])
            for key, value in trial.user_attrs.items()
            if key.startswith(WINDOW_PREFIX)
        )
        self._passed = max(self._stops, default=-1)

    def window(self, window: WindowStats) -> None:
        """Record a window; let the study's own pruner and the higher rungs have their say.

        Raises:
            optuna.TrialPruned: if the pruner says so, or a higher rung was accepted.
        """
        self._record(window)
        give_way(self._trial, window)

    def _record(self, window: WindowStats) -> None:
        before = [stop for stop in self._stops if stop < window.stop]
        if _soon(before, window) and _dispensable(before, window):
            return
        self._trial.set_user_attr(f"{WINDOW_PREFIX}{len(before)}", window.as_attribute())
        self._stops = [*before, window.stop]
        if window.decision in ("restart", "stop"):
            self.reject(window.reason, window.pvalue)
        if window.decision == "accept":
            self._trial.set_user_attr(REASON, f"accepted: {window.reason}")
            self._trial.set_user_attr(PVALUE, window.pvalue)
        # Whoever got to a later window was let pass at this one; the pruner would judge the later.
        if window.stop < self._passed or self._reporter is None:
            return
        if self._reporter.rejects(window.loss_mean, window.last_step):
            self.reject("pruned by the study's pruner", window.pvalue)

    def reject(self, reason: str, pvalue: float) -> NoReturn:
        """End the trial with its reason.

        Raises:
            optuna.TrialPruned: always.
        """
        self._trial.set_user_attr(REASON, reason)
        self._trial.set_user_attr(PVALUE, pvalue)
        raise optuna.TrialPruned(f"{reason} (p = {pvalue:.3g})")


def _soon(before: list[int], window: WindowStats) -> bool:
    """Whether the run has hardly grown since the last window that was written."""
    return len(before) >= _FIRST and window.stop < int(before[-1] * _GROWTH)


def _dispensable(before: list[int], window: WindowStats) -> bool:
    many = window.decision == "decay" and len(before) >= _MANY
    return window.decision == "continue" or many
