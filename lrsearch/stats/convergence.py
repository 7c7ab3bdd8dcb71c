"""Is this loss curve an exponential decay, rather than a line? The test that accepts a rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from lrsearch.errors import require_choice, require_in_open_unit_interval
from lrsearch.stats.curvature import curvature_of, end_rises
from lrsearch.stats.exponential import exponential_of
from lrsearch.stats.line import line_of
from lrsearch.stats.series import Losses, as_losses, standardize

Mode = Literal["robust", "paper"]
MODES = ("robust", "paper")

# Fewest points with one degree of freedom left after three parameters.
_FEWEST = 4
# A decay that is over within a step is an outlier at the start, not a curve.
LARGEST_ROBUST_RATE = 1.0


@dataclass(frozen=True, slots=True)
class FTestResult:
    """Outcome of the F-test of an exponential decay against a line.

    Attributes:
        statistic: F; 0 if the exponential explains no more than the line. In "robust" mode the
            squared t of the decay's curvature.
        pvalue: probability of as much evidence if the curve were a line; in [0, 1]. 1 where there
            is nothing to test (too short, constant, not finite).
        passed: whether pvalue < alpha.
        n: number of losses.
        n_effective: number of independent losses that they are worth (n in "paper" mode).
        df_num, df_denom: degrees of freedom, 1 and those of the residuals: n - 3, or n - 4 in
            "robust" mode, which leaves out the first loss.
        sse_linear, sse_exponential: sums of squared errors of the losses that are tested [loss^2];
            NaN if not fitted.
        reason: "decay", "not exponential", "too short", "constant" or "not finite".
    """

    statistic: float
    pvalue: float
    passed: bool
    n: int
    n_effective: float
    df_num: float
    df_denom: float
    sse_linear: float
    sse_exponential: float
    reason: str


def exponential_test(losses: Losses, *, alpha: float = 0.05, mode: Mode = "robust") -> FTestResult:
    """Does an exponential decay explain a window of losses better than a straight line?

    ``mode="paper"``: F = (SSE_lin - SSE_exp) / (SSE_exp / (N - 3)) on (1, N - 3) degrees of
    freedom, p its upper tail ([E], Algorithm 1). The exponential is the global least-squares fit
    among *decays* (A >= 0, B > 0): a rising window, however exponential its rise, never passes.

    ``mode="robust"`` (default) asks that as well, SSE_exp < SSE_lin, and takes its p-value from the
    decay's curvature beside a line, in noise whose correlation and change of size are estimated
    (see ``curvature_of``). Three things are no decay by themselves:

    * one loud loss at the start: the first loss, that of the initial weights, is left out. A step
      that kills a network leaves such a window: the first loss, and then a constant;
    * a decay that is over within one step;
    * a fall followed by a rise: p is 1 where the second half of the window rises beyond doubt.

    Args:
        losses: shape (window,) [loss]. Any numbers are survived.
        alpha: level of the test, in (0, 1).
        mode: "robust" or "paper".

    Assumes errors that are independent normal ("paper") or close to AR(1) with a standard deviation
    that is linear in time ("robust"). The true level is measured by simulation (see
    docs/statistics.md). Repeated looks at a growing window inflate it: spend alpha.

    Raises:
        ValueError: if alpha or mode is not allowed, or losses are not one-dimensional.
        TypeError: if the losses are not numbers.
    """
    require_in_open_unit_interval("alpha", alpha)
    require_choice("mode", mode, MODES)
    robust = mode == "robust"
    y = as_losses(losses)
    n = y.size
    tested = y[1:] if robust else y
    if tested.size < _FEWEST:
        return _nothing_to_test(n, "too short")
    if not np.all(np.isfinite(y)):
        return _nothing_to_test(n, "not finite")
    series = standardize(tested, minimum=_FEWEST)
    if series.degenerate:
        return _nothing_to_test(n, "constant")
    _, sse_linear = line_of(series)
    fit = exponential_of(series, largest_rate=LARGEST_ROBUST_RATE if robust else np.inf)
    df = tested.size - 3.0
    statistic, pvalue = f_test_nested(sse_linear, fit.sse, df, floor=series.noise_floor)
    n_effective = float(tested.size)
    if robust and statistic > 0.0:
        curvature = curvature_of(series, fit, largest_rate=LARGEST_ROBUST_RATE)
        statistic, pvalue = curvature.statistic, curvature.pvalue
        n_effective = curvature.n_effective
        if pvalue < alpha and end_rises(series):
            pvalue = 1.0
    unit = series.scale * series.scale
    passed = bool(pvalue < alpha)
    return FTestResult(
        statistic=statistic,
        pvalue=pvalue,
        passed=passed,
        n=n,
        n_effective=n_effective,
        df_num=1.0,
        df_denom=df,
        sse_linear=sse_linear * unit,
        sse_exponential=fit.sse * unit,
        reason="decay" if passed else "not exponential",
    )


def f_test_nested(
    sse_restricted: float, sse_full: float, df: float, *, floor: float = 0.0
) -> tuple[float, float]:
    """Does one further parameter explain more than chance?

    F = (sse_restricted - sse_full) / (sse_full / df) on (1, df) degrees of freedom.

    Args:
        sse_restricted, sse_full: sums of squared errors of the smaller and the larger model.
        df: residual degrees of freedom of the larger model; need not be whole.
        floor: a sum of squares below this is rounding error.

    Returns:
        (F, upper-tail p-value); F is 0 and p is 1 where the larger model explains no more, or no
        degree of freedom is left.
    """
    gained = sse_restricted - sse_full
    if df <= 0.0 or gained <= floor:
        return 0.0, 1.0
    statistic = gained / (max(sse_full, floor, np.finfo(np.float64).tiny) / df)
    return float(statistic), float(special.fdtrc(1.0, df, statistic))


def _nothing_to_test(n: int, reason: str) -> FTestResult:
    nan = float("nan")
    return FTestResult(0.0, 1.0, False, n, float(n), 1.0, n - 3.0, nan, nan, reason)
