"""What one trial tells its study's storage: little, and enough to see why it ended."""

from __future__ import annotations

from typing import NoReturn

import optuna

from lrsearch.studies.attributes import PVALUE, REASON, WINDOW_PREFIX
from lrsearch.windows import WindowStats

# Windows that end nothing are thinned out, so that a trial of 10 000 steps writes at most 100 rows:
# all of the first few, then one whenever the run has grown by a fifth.
_FIRST = 8
_GROWTH = 1.2
_MANY = 32  # decays are few, unless beta is near 1


class TrialRecorder:
    """Writes windows to a trial: one attribute, one report and one ``should_prune`` each.

    Args:
        trial: the running trial (or a ``FixedTrial``).
    """

    def __init__(self, trial: optuna.trial.BaseTrial) -> None:
        self._trial = trial
        study = getattr(trial, "study", None)
        # Reports need a single objective (Optuna raises otherwise); attributes do not.
        self._reports = study is None or len(study.directions) == 1
        # A trial that is resumed goes on numbering where it stopped.
        self._written = sum(key.startswith(WINDOW_PREFIX) for key in trial.user_attrs)
        self._quiet_until = 0

    def window(self, window: WindowStats) -> None:
        """Record a window, and let the study's own pruner have its say.

        Raises:
            optuna.TrialPruned: if the pruner says so.
        """
        soon = window.stop < self._quiet_until
        if soon and (window.decision == "continue" or self._thins_decays(window)):
            return
        self._trial.set_user_attr(f"{WINDOW_PREFIX}{self._written}", window.as_attribute())
        self._written += 1
        if self._written >= _FIRST:
            self._quiet_until = int(window.stop * _GROWTH)
        if window.decision in ("restart", "stop"):
            self.reject(window.reason, window.pvalue)
        if window.decision == "accept":
            self._trial.set_user_attr(REASON, f"accepted: {window.reason}")
            self._trial.set_user_attr(PVALUE, window.pvalue)
        if self._reports:
            self._trial.report(window.loss_mean, step=window.last_step)
            if self._trial.should_prune():
                self.reject("pruned by the study's pruner", window.pvalue)

    def _thins_decays(self, window: WindowStats) -> bool:
        return window.decision == "decay" and self._written >= _MANY

    def reject(self, reason: str, pvalue: float) -> NoReturn:
        """End the trial with its reason.

        Raises:
            optuna.TrialPruned: always.
        """
        self._trial.set_user_attr(REASON, reason)
        self._trial.set_user_attr(PVALUE, pvalue)
        raise optuna.TrialPruned(f"{reason} (p = {pvalue:.3g})")
