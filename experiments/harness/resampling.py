"""Bootstrap intervals where tasks and seeds both vary: tasks are drawn anew, then seeds in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lrsearch.errors import InvalidArgumentError

DRAWS: Final = 5000
LEVEL: Final = 0.95

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Paired:
    """A mean of paired differences, its interval, and Wilcoxon's p-value."""

    mean: float
    low: float
    high: float
    pvalue: float


def bootstrap_interval(
    values: FloatArray,
    statistic: Callable[[FloatArray], Any] = np.mean,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    whole_tasks: bool = False,
) -> tuple[float, float]:
    """Percentile interval of a statistic: tasks are drawn with replacement, then seeds in each.

    Seeds alone would say how well these tasks are known; a claim about tasks must let them vary.
    Drawing seeds anew adds noise to the tasks' means, which hold that of their seeds already. A
    mean over tasks does not mind; a median of skewed means, or a count of those above a limit, is
    moved by it, away from the estimate: such statistics want whole tasks.

    Args:
        values: shape (tasks, seeds, ...); what follows the seeds is drawn as a whole.
        statistic: of an array of that shape.
        draws: number of resampled arrays.
        level: share of them inside the interval.
        whole_tasks: keep the seeds of a drawn task as they are.

    Raises:
        InvalidArgumentError: if there are no values.
    """
    if values.ndim < 2 or not values.size:
        raise InvalidArgumentError(
            f"values must have the shape (tasks, seeds, ...) and hold some, got {values.shape}"
        )
    generator = np.random.default_rng(0)
    tasks, seeds = values.shape[:2]

    def draw() -> FloatArray:
        rows = generator.integers(tasks, size=(tasks, 1))
        if whole_tasks:
            return values[rows[:, 0]]
        return values[rows, generator.integers(seeds, size=(tasks, seeds))]

    drawn = [float(statistic(draw())) for _ in range(draws)]
    low, high = np.quantile(drawn, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def paired_interval(
    differences: FloatArray, *, draws: int = DRAWS, per_task: bool = False
) -> Paired:
    """Mean difference of two methods on the same tasks and seeds.

    Args:
        differences: shape (tasks, seeds, ...), of the same task and seed; NaN where either method
            was not measured, but not everywhere of a task and seed.
        draws: of the bootstrap, see :func:`bootstrap_interval`.
        per_task: Wilcoxon's test is of the tasks' means; else of all differences, which takes the
            seeds of a task for independent.
    """
    low, high = bootstrap_interval(differences, np.nanmean, draws=draws)
    known = differences[~np.isnan(differences)]
    tested = np.array([np.nanmean(task) for task in differences]) if per_task else known
    pvalue = float(stats.wilcoxon(tested).pvalue) if np.any(tested) else 1.0
    return Paired(float(known.mean()), low, high, pvalue)


def holm(pvalues: FloatArray) -> FloatArray:
    """Holm's adjusted p-values, shape (tests,): the family's error rate is kept at their level."""
    order = np.argsort(pvalues)
    scaled = pvalues[order] * np.arange(len(pvalues), 0, -1)
    adjusted = np.empty_like(scaled)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
