"""Is this loss curve an exponential decay, rather than a line? The test that accepts a rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from lrsearch.errors import require_choice, require_in_open_unit_interval
from lrsearch.stats.dependence import effective_sample_size
from lrsearch.stats.exponential import UnitExponential, exponential_of
from lrsearch.stats.line import line_of
from lrsearch.stats.series import Losses, Series, as_losses, standardize

Mode = Literal["robust", "paper"]
MODES = ("robust", "paper")

# Fewest points with one degree of freedom left after three parameters.
_FEWEST = 4
# With three degrees of freedom left, a decay passes on its fit alone if it misses 4.4 times less
# than the line; random walks do so in about one window of a hundred.
_FEWEST_EFFECTIVE = 6.0
# A decay that is over within a step is an outlier at the start, not a curve.
LARGEST_ROBUST_RATE = 1.0
# The rate was chosen from the same losses: the curvature's p-value is multiplied by the number of
# distinct shapes among which it was chosen, about four, measured on flat and fading noise.
_SHAPES_TRIED = 4.0
_FADING = 10.0


@dataclass(frozen=True, slots=True)
class FTestResult:
    """Outcome of the F-test of an exponential decay against a line.

    Attributes:
        statistic: F; 0 if the exponential explains no more than the line.
        pvalue: probability of as much evidence if the curve were a line; in [0, 1]. 1 where there
            is nothing to test (too short, constant, not finite).
        passed: whether pvalue < alpha.
        n: number of losses.
        n_effective: number of independent losses that they are worth (n in "paper" mode).
        df_num, df_denom: degrees of freedom, 1 and n_effective - 3.
        sse_linear, sse_exponential: sums of squared errors [loss^2]; NaN if not fitted.
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

    F = (SSE_lin - SSE_exp) / (SSE_exp / (N - 3)) on (1, N - 3) degrees of freedom, p its upper tail
    ([E], Algorithm 1). The exponential is the global least-squares fit among *decays* (A >= 0,
    B > 0): a rising window, however exponential its rise, never passes.

    ``mode="paper"`` takes N as the number of losses. ``mode="robust"`` (default)

    * shrinks N to the effective sample size of the residuals, since mini-batch losses depend on
      one another;
    * leaves out decays that are over within one step;
    * asks besides that noise that fades cannot be the cause: either the decay's curvature, fitted
      beside a line, is positive by a one-sided t-test with the HC3 variance (MacKinnon & White,
      1985), or a tenth of F is significant still;
    * asks that the window passes without its first loss too: one loud loss is no decay.

    The largest of these p-values and F's counts.

    Args:
        losses: shape (window,) [loss]. Any numbers are survived.
        alpha: level of the test, in (0, 1).
        mode: "robust" or "paper".

    Assumes errors that are independent normal ("paper") or close to AR(1) ("robust"). The rate B is
    not identified under a flat curve, so alpha is a threshold, and the true level is measured by
    simulation (see docs/statistics.md). Repeated looks at a growing window inflate it: spend alpha.

    Raises:
        ValueError: if alpha or mode is not allowed, or losses are not one-dimensional.
        TypeError: if the losses are not numbers.
    """
    require_in_open_unit_interval("alpha", alpha)
    require_choice("mode", mode, MODES)
    n = as_losses(losses).size
    if n < _FEWEST:
        return _nothing_to_test(n, "too short")
    series = standardize(losses, minimum=_FEWEST)
    if series.degenerate:
        return _nothing_to_test(n, "constant" if series.finite else "not finite")
    robust = mode == "robust"
    evidence = _evidence(series, robust=robust)
    pvalue = evidence.pvalue
    if robust and pvalue < alpha:
        pvalue = max(pvalue, _fading_pvalue(series, evidence), _pvalue_without_first(losses))
    unit = series.scale * series.scale
    passed = bool(pvalue < alpha)
    return FTestResult(
        statistic=evidence.statistic,
        pvalue=pvalue,
        passed=passed,
        n=n,
        n_effective=evidence.n_effective,
        df_num=1.0,
        df_denom=evidence.n_effective - 3.0,
        sse_linear=evidence.sse_linear * unit,
        sse_exponential=evidence.fit.sse * unit,
        reason="decay" if passed else "not exponential",
    )


@dataclass(frozen=True, slots=True)
class _Evidence:
    """The plain F-test of a window, on the series' own scale."""

    sse_linear: float
    fit: UnitExponential
    n_effective: float
    statistic: float
    pvalue: float


def _evidence(series: Series, *, robust: bool) -> _Evidence:
    _, sse_linear = line_of(series)
    fit = exponential_of(series, largest_rate=LARGEST_ROBUST_RATE if robust else np.inf)
    n_effective = float(series.values.size)
    if robust and fit.sse > 0.0:
        n_effective = effective_sample_size(fit.residual, fewest=_FEWEST_EFFECTIVE)
    statistic, pvalue = f_test_nested(
        sse_linear, fit.sse, n_effective - 3.0, floor=series.noise_floor
    )
    return _Evidence(sse_linear, fit, n_effective, statistic, pvalue)


def _fading_pvalue(series: Series, evidence: _Evidence) -> float:
    """p-value against noise that fades: of the curvature, or of a tenth of F if that is smaller.

    Even noise that starts with ten times its average variance inflates F no more than tenfold.
    """
    df = evidence.n_effective - 3.0
    beyond = float(special.fdtrc(1.0, df, evidence.statistic / _FADING))
    return min(beyond, _curvature_pvalue(series, evidence.fit, evidence.n_effective))


def _pvalue_without_first(losses: Losses) -> float:
    """p-value of the window less its first loss: one loud loss is no decay.

    A step that kills a network leaves such a window: the first loss, and then a constant.
    """
    y = as_losses(losses)[1:]
    if y.size < _FEWEST:
        return 1.0
    rest = standardize(y, minimum=_FEWEST)
    return 1.0 if rest.degenerate else _evidence(rest, robust=True).pvalue


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


def _curvature_pvalue(series: Series, fit: UnitExponential, n_effective: float) -> float:
    """One-sided p-value that the decay, beside a line, is there with a positive amplitude.

    Regression z = a + b t + c exp(-B t); t = c / stderr_HC3(c) with the residuals divided by one
    minus their leverage, so a few loud points at the start do not vouch for themselves.
    """
    z = series.values
    n = z.size
    x = np.arange(n) - (n - 1) / 2.0
    x /= np.sqrt(x @ x)
    decay = np.expm1(-fit.rate * np.arange(n))
    decay -= decay.mean()
    spread = float(decay @ decay)
    decay -= (decay @ x) * x
    power = float(decay @ decay)
    if power <= 1e-12 * spread:
        return 1.0  # no curvature at all: the decay is the line
    amplitude = float(decay @ z) / power
    residual = z - (z @ x) * x - amplitude * decay
    leverage = 1.0 / n + x * x + decay * decay / power
    loud = residual / np.maximum(1.0 - leverage, 1e-3)
    variance = float(np.sum((decay * loud) ** 2)) / power**2
    if amplitude <= 0.0:
        return 1.0
    if variance * power <= series.noise_floor:
        return 0.0  # an exact decay
    t = amplitude / np.sqrt(variance) * np.sqrt(n_effective / n)
    return float(min(1.0, _SHAPES_TRIED * special.stdtr(n_effective - 3.0, -t)))


def _nothing_to_test(n: int, reason: str) -> FTestResult:
    nan = float("nan")
    return FTestResult(0.0, 1.0, False, n, float(n), 1.0, n - 3.0, nan, nan, reason)
