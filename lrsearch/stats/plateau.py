"""Does the loss still fall? The test that decays a rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, special

from lrsearch.errors import require_choice, require_in_open_unit_interval, require_positive
from lrsearch.stats.convergence import MODES, Mode
from lrsearch.stats.line import line_of, step_spread
from lrsearch.stats.regression import CorrelatedFit, correlated_fit
from lrsearch.stats.series import Losses, Series, as_losses, standardize

Verdict = Literal["descending", "plateau", "undecided"]

# Fewest points with one degree of freedom left after two parameters.
_FEWEST = 3


@dataclass(frozen=True, slots=True)
class PlateauResult:
    """Outcome of the test of a window's slope.

    Attributes:
        statistic: t = slope / standard error, averaged over the correlation in "robust" mode;
            negative if the losses fall. NaN if there is nothing to test.
        pvalue: lower tail of t: small if the losses fall.
        verdict: "descending", "plateau" or "undecided" (never in "paper" mode).
        slope: [loss per step].
        slope_stderr: standard error, for dependent losses in "robust" mode [loss per step].
        steepest: lower confidence bound of the slope at level 1 - alpha [loss per step]: the losses
            fall no faster than this.
        n, n_effective: number of losses, and of independent losses that they are worth.
    """

    statistic: float
    pvalue: float
    verdict: Verdict
    slope: float
    slope_stderr: float
    steepest: float
    n: int
    n_effective: float


def plateau_test(
    losses: Losses, *, alpha: float = 0.05, mode: Mode = "robust", margin: float = 0.05
) -> PlateauResult:
    """Does the loss still fall over a window?

    t = slope / stderr(slope) with p its lower tail on N - 2 degrees of freedom ([E], III).

    ``mode="paper"``: "descending" if p < alpha, else "plateau". That takes absence of evidence for
    evidence: a short window is a plateau because it is short.

    ``mode="robust"`` (default): the slope and its standard error are those of noise that is AR(1)
    and may fade (see ``correlated_fit``), p is averaged over its correlation, and a plateau must be
    *shown*, by an equivalence test: the slope's confidence bound at level 1 - alpha rules out a
    fall of more than ``margin`` of the mean loss over the window. Neither shown: "undecided", and
    more losses are needed.

    Args:
        losses: shape (window,) [loss]. Any numbers are survived: a constant window is a plateau,
            one that is too short or not finite is "undecided" ("plateau" in paper mode).
        alpha: level of both tests, in (0, 1).
        mode: "robust" or "paper".
        margin: smallest fall over the window that matters, as a share of the mean loss's size.

    Raises:
        ValueError: if alpha, mode or margin is not allowed, or losses are not one-dimensional.
        TypeError: if the losses are not numbers.
    """
    require_in_open_unit_interval("alpha", alpha)
    require_choice("mode", mode, MODES)
    require_positive("margin", margin)
    robust = mode == "robust"
    silent: Verdict = "undecided" if robust else "plateau"
    nan = float("nan")
    n = as_losses(losses).size
    if n < _FEWEST:
        return PlateauResult(nan, 1.0, silent, nan, nan, nan, n, float(n))
    series = standardize(losses, minimum=_FEWEST)
    if not series.finite:
        return PlateauResult(nan, 1.0, silent, nan, nan, nan, n, float(n))
    if series.degenerate:
        return PlateauResult(nan, 1.0, "plateau", 0.0, 0.0, 0.0, n, float(n))

    slope, sse = line_of(series)
    if sse == 0.0:  # an exact line: its direction is certain
        falls = slope < 0.0
        loss_slope = slope * series.scale
        statistic = float(np.copysign(np.inf, slope))
        verdict: Verdict = "descending" if falls else "plateau"
        return PlateauResult(
            statistic, 0.0 if falls else 1.0, verdict, loss_slope, 0.0, loss_slope, n, float(n)
        )
    scale = series.scale
    matters = margin * abs(series.location) / n
    if robust:
        return _robust(series, alpha, matters)
    df = n - 2.0
    stderr = float(np.sqrt(sse / df / step_spread(n)))
    statistic = slope / stderr
    pvalue = float(special.stdtr(df, statistic))
    return PlateauResult(
        statistic=statistic,
        pvalue=pvalue,
        verdict="descending" if pvalue < alpha else "plateau",
        slope=slope * scale,
        slope_stderr=stderr * scale,
        steepest=(slope - float(special.stdtrit(df, 1.0 - alpha)) * stderr) * scale,
        n=n,
        n_effective=float(n),
    )


def _robust(series: Series, alpha: float, matters: float) -> PlateauResult:
    """The verdict from the slope in correlated noise; ``matters``: fall [loss per step]."""
    n = series.values.size
    time = np.arange(n) - (n - 1) / 2.0
    # Columns of one size; the slope is then that per ``reach`` steps.
    reach = float(np.sqrt(step_spread(n)))
    columns = np.stack([np.full(n, 1.0 / np.sqrt(n)), time / reach])
    fit = correlated_fit(columns, series.values, noise_floor=series.noise_floor)
    unit = series.scale / reach
    pvalue = fit.averaged(special.stdtr(fit.df, fit.t()))
    steepest = _lower_bound(fit, alpha) * unit
    slope = float(fit.weight @ fit.coefficient) * unit
    stderr = float(np.sqrt(fit.weight @ fit.stderr**2)) * unit
    verdict: Verdict = "undecided"
    if pvalue < alpha:
        verdict = "descending"
    elif steepest > -matters:
        verdict = "plateau"
    r = max(fit.correlation, 0.0)
    return PlateauResult(
        statistic=float(fit.weight @ fit.t()),
        pvalue=pvalue,
        verdict=verdict,
        slope=slope,
        slope_stderr=stderr,
        steepest=steepest,
        n=n,
        n_effective=n * (1.0 - r) / (1.0 + r),
    )


def _lower_bound(fit: CorrelatedFit, alpha: float) -> float:
    """The coefficient below which the truth lies with posterior probability alpha."""
    ends = fit.coefficient - float(special.stdtrit(fit.df, 1.0 - alpha)) * fit.stderr
    low, high = float(ends.min()), float(ends.max())
    if not low < high:
        return low

    def excess(bound: float) -> float:
        return fit.averaged(special.stdtr(fit.df, -fit.t(bound))) - alpha

    # At the ends every term is at most, or at least, alpha; rounding may say otherwise.
    if excess(low) >= 0.0 or excess(high) <= 0.0:
        return low
    return float(optimize.brentq(excess, low, high, xtol=1e-9 * (high - low)))
