"""Two loss curves on the same batches: which rate is the better one?

Rates that are tried from the same weights on the same batches meet the same noise. The difference
of their losses, step by step, is free of most of it, so that a short probe decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from lrsearch.errors import InvalidArgumentError
from lrsearch.stats.series import Losses, as_losses, standardize

FEWEST_PAIRS = 3


@dataclass(frozen=True, slots=True)
class PairedResult:
    """Outcome of a comparison of two curves.

    Attributes:
        difference: mean of first less second [loss].
        statistic: t of that mean; infinite without any noise.
        pvalue: lower tail: small if the first curve lies below the second.
        n: number of pairs.
    """

    difference: float
    statistic: float
    pvalue: float
    n: int


def paired_test(first: Losses, second: Losses) -> PairedResult:
    """Does the first curve lie below the second, on the same batches? Student's paired t-test.

    Batches are drawn anew each step, so the differences count as independent. A trend in them (two
    rates that part) is no noise, and must not pass for correlation; it only widens the test.
    Losses that are not finite lie above all others.

    Args:
        first, second: shape (steps,) each, on the same batches [loss].

    Raises:
        InvalidArgumentError: if their lengths differ, or there are fewer than 3.
    """
    above, below = as_losses(first), as_losses(second)
    if above.size != below.size or above.size < FEWEST_PAIRS:
        raise InvalidArgumentError(
            f"first and second must have the same length of at least {FEWEST_PAIRS}, got "
            f"{above.size} and {below.size}"
        )
    bad = (not np.all(np.isfinite(above)), not np.all(np.isfinite(below)))
    if any(bad):
        sign = float(bad[0]) - float(bad[1])
        difference = sign * np.inf if sign else float("nan")
        return PairedResult(difference, difference, (1.0 + sign) / 2.0, above.size)
    series = standardize(above - below, minimum=FEWEST_PAIRS)
    n, mean = above.size, series.location
    if series.degenerate:
        statistic = float(np.copysign(np.inf, mean)) if mean else 0.0
        return PairedResult(mean, statistic, float(special.ndtr(statistic)), n)
    error = series.scale * float(np.std(series.values, ddof=1)) / np.sqrt(n)
    statistic = mean / error
    return PairedResult(mean, statistic, float(special.stdtr(n - 1.0, statistic)), n)
