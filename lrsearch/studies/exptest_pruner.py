"""A pruner that looks at a trial's own loss curve and asks whether it decays."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from lrsearch.controllers.exptest import Decision
from lrsearch.controllers.replay import search_verdict
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.errors import InvalidArgumentError
from lrsearch.stats.convergence import Mode
from lrsearch.studies.attributes import WINDOW_PREFIX
from lrsearch.windows import rejects


class ExpTestPruner(BasePruner):
    """Prunes a trial whose first complete window is no exponential decay.

    It needs no other trials, so it works from the first one on, and it compares nothing across
    trials. Two sources, with equal verdicts:

    * plain ``trial.report(loss, step)`` calls. Points count as steps: the window is Eq. 52 from the
      first loss and the trial's ``lr_name`` parameter, divided by the spacing of the reports,
      within 30 and 2 000 points ("robust"). A curve that is still flat, or falls without a bend
      yet, is looked at again at two and four window lengths; a rise, or a jump to three times
      the start, is rejected at the first look.
    * windows that ``ExpTest(trial=...)`` recorded: its own verdict counts.

    A loss that is not finite, or explodes, prunes at once. Fewer points than the window never
    prune. The study's direction plays no part: a loss is to fall. The pruner is a pure function of
    the trial; the looks spend ``alpha`` as 1/2 + 1/4 + 1/8. Being pure it writes nothing: with
    ``ExpTestSampler`` the reason and p-value of a pruned trial become its attributes, and with any
    sampler ``verdict(trial)`` tells them.

    Args:
        alpha: level of the test, in (0, 1).
        mode: "robust" or "paper".
        lr_name: the learning rate's parameter; where a trial lacks it, the smallest window counts.
        full_batch: whether each reported loss is that of the whole data set; then every jump above
            the start of a curve is the rate's doing.

    Raises:
        ValueError: if an argument is outside what is allowed.

    Example:
        >>> import optuna
        >>> from lrsearch import ExpTestPruner, ExpTestSampler
        >>> study = optuna.create_study(sampler=ExpTestSampler(), pruner=ExpTestPruner())
    """

    def __init__(
        self,
        *,
        alpha: float = 0.05,
        mode: Mode = "robust",
        lr_name: str = "lr",
        full_batch: bool = False,
    ) -> None:
        self._settings = ExpTestSettings(alpha=alpha, mode=mode, full_batch=full_batch)
        if not isinstance(lr_name, str) or not lr_name:
            raise InvalidArgumentError(f"lr_name must be a parameter's name, got {lr_name!r}")
        self._lr_name = lr_name

    def prune(self, study: optuna.study.Study, trial: FrozenTrial) -> bool:
        """Whether the trial's rate is rejected."""
        return self.verdict(trial)[0]

    def verdict(self, trial: FrozenTrial) -> tuple[bool, str, float]:
        """Whether the rate is rejected, why, and the p-value."""
        last = _last_window(trial)
        if last is not None:
            pvalue = last.get("p")
            return rejects(last), str(last["reason"]), 1.0 if pvalue is None else float(pvalue)
        decision = self._judge_curve(trial)
        if decision is None or decision.window is None:
            return False, "too short to tell", 1.0
        return decision.kind == "restart", decision.reason, decision.window.pvalue

    def _judge_curve(self, trial: FrozenTrial) -> Decision | None:
        reports = sorted(trial.intermediate_values.items())
        if not reports:
            return None
        steps, losses = zip(*reports, strict=True)
        spacing = max(1.0, float(np.median(np.diff(steps)))) if len(steps) > 1 else 1.0
        rate = trial.params.get(self._lr_name)
        # A window of w steps holds w / spacing points: the same as a rate that much larger.
        lr = float(np.finfo(np.float64).max)
        if isinstance(rate, (int, float)) and 0.0 < rate < lr / spacing:
            lr = float(rate) * spacing
        return search_verdict(self._settings, np.asarray(losses, dtype=np.float64), lr=lr)


def _last_window(trial: FrozenTrial) -> dict[str, Any] | None:
    """The window that ``ExpTest`` recorded last, if any."""
    numbers = [
        int(key.removeprefix(WINDOW_PREFIX))
        for key in trial.user_attrs
        if key.startswith(WINDOW_PREFIX) and key.removeprefix(WINDOW_PREFIX).isdigit()
    ]
    if not numbers:
        return None
    window = trial.user_attrs[f"{WINDOW_PREFIX}{max(numbers)}"]
    return window if isinstance(window, dict) else None
