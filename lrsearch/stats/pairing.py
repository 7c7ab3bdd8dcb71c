"""Two loss curves on the same batches: which rate is the better one?

Rates that are tried from the same weights on the same batches meet the same noise. The difference
of their losses, step by step, is free of most of it, so that a short probe decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from lrsearch.errors import InvalidArgumentError
from lrsearch.stats.regression import correlated_fit
from lrsearch.stats.series import Losses, as_losses, standardize

_FEWEST = 3


@dataclass(frozen=True, slots=True)
class PairedResult:
    """Outcome of a comparison of two curves.

    Attributes:
        difference: mean of first less second [loss].
        statistic: t of that mean, for AR(1) differences; infinite without any noise.
        pvalue: lower tail: small if the first curve lies below the second.
        n: number of pairs.
    """

    difference: float
    statistic: float
    pvalue: float
    n: int


def paired_test(first: Losses, second: Losses) -> PairedResult:
    """Does the first curve lie below the second, on the same batches?

    The mean of the differences is tested against zero, their correlation in time averaged over (see
    ``correlated_fit``). Losses that are not finite lie above all others.

    Args:
        first, second: shape (steps,) each, on the same batches [loss].

    Raises:
        InvalidArgumentError: if their lengths differ, or there are fewer than 3.
    """
    above, below = as_losses(first), as_losses(second)
    if above.size != below.size or above.size < _FEWEST:
        raise InvalidArgumentError(
            f"first and second must have the same length of at least {_FEWEST}, got "
            f"{above.size} and {below.size}"
        )
    bad = (not np.all(np.isfinite(above)), not np.all(np.isfinite(below)))
    if any(bad):
        sign = float(bad[0]) - float(bad[1])
        difference = sign * np.inf if sign else float("nan")
        return PairedResult(difference, difference, (1.0 + sign) / 2.0, above.size)
    gaps = above - below
    series = standardize(gaps, minimum=_FEWEST)
    mean = series.location
    if series.degenerate:
        statistic = float(np.copysign(np.inf, mean)) if mean else 0.0
        return PairedResult(mean, statistic, float(special.ndtr(statistic)), gaps.size)
    level = np.full((1, gaps.size), 1.0 / np.sqrt(gaps.size))
    # The series is centred: its location, in its own scale, comes back in.
    shifted = series.values + mean / series.scale
    fit = correlated_fit(level, shifted, noise_floor=series.noise_floor)
    return PairedResult(
        difference=mean,
        statistic=float(fit.weight @ fit.t()),
        pvalue=fit.averaged(special.stdtr(fit.df, fit.t())),
        n=gaps.size,
    )
