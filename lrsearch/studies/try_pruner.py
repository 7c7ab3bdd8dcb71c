"""A pruner that ends the tries of ``LipschitzSampler(tries=True)``, and nothing else."""

from __future__ import annotations

from math import isfinite

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from lrsearch.errors import require_at_least
from lrsearch.studies.tries import is_try


class TryPruner(BasePruner):
    """Ends a try once it has reported so many values; never touches another trial.

    Tries are the first trials of a study with ``LipschitzSampler(tries=True)``: their last reported
    value tells which multiplier the trials after them take. A try whose last value is not finite
    ends at once. A pure function of the trial.

    Args:
        reports: how many values a try reports, such as one an epoch; the papers try for 5 epochs.

    Raises:
        InvalidArgumentError: if ``reports`` is no whole number of at least 1.

    Example:
        >>> import optuna
        >>> from lrsearch import LipschitzSampler
        >>> from lrsearch.studies import TryPruner
        >>> sampler = LipschitzSampler(1.0, multipliers=(0.1, 0.5, 1.0), tries=True)
        >>> study = optuna.create_study(sampler=sampler, pruner=TryPruner(5))
    """

    def __init__(self, reports: int = 5) -> None:
        self._reports = require_at_least("reports", reports, 1)

    def prune(self, study: optuna.study.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is a try that has come to its end."""
        values = trial.intermediate_values
        if not values or not is_try(trial):
            return False
        return len(values) >= self._reports or not isfinite(values[max(values)])
