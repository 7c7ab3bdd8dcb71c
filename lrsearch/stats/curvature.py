"""Is the curvature of a decay, beside a line, there? The evidence of the robust F-test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

from lrsearch.stats.exponential import UnitExponential, grid_of
from lrsearch.stats.regression import correlated_fit
from lrsearch.stats.series import FloatArray, Series

# A rate is open if its decay explains no less than the best one by 10 variances of a slow trend's
# coefficient: a likelihood ratio that chance exceeds about once in a thousand windows.
_OPEN = 10.0
# Longer windows have the angles of this length, and a closed form for decays faster than 1/100 of
# them.
_TABULATED = 512
_SHORTEST_END = 8
_RISE_LEVEL = 0.001
_FAST = 100.0


@dataclass(frozen=True, slots=True)
class Curvature:
    """Evidence for a decay's curvature.

    Attributes:
        statistic: F = t^2 of the curvature, t averaged over the correlation; 0 if it bends down.
        pvalue: one-sided, with the choice of the rate allowed for.
        n_effective: number of independent losses that determine a slow trend as well.
    """

    statistic: float
    pvalue: float
    n_effective: float


def curvature_of(series: Series, fit: UnitExponential, *, largest_rate: float) -> Curvature:
    """Test the curvature of the best decay, beside a line, in noise that is AR(1) and may fade.

    z = a + b t + c exp(-B t) by ``correlated_fit``, whose t_r = c / stderr for every correlation r
    gives, with L the length of the curve that the unit vectors of exp(-B t) beside a line draw on
    the sphere as B runs through the rates that the losses leave open,

        p_r = P(T_df > t_r) + L / (2 pi) (1 + t_r^2 / df)^(-(df - 1) / 2),

    and p is the mean of p_r over r. This is the bound of Hotelling's tube (1939; Naiman, 1986;
    Johansen & Johnstone, 1990) on the largest t among all rates: exact in its leading term for
    independent normal noise. On a flat window all rates are open (L is 1.4 at 50 points, 2.1 at
    200) and p is up to five times that of a rate known beforehand; a clear fall fixes the slope,
    and with it the rate, so L is near 0 and nothing is paid.

    Args:
        series: the window, shape (n,), n > 3.
        fit: its best decay, on the grid of ``largest_rate``.
        largest_rate: as the fit's [1 / step].
    """
    z = series.values
    n = z.size
    time = np.linspace(-1.0, 1.0, n)
    time /= np.sqrt(time @ time)
    # expm1 keeps the digits of a decay that is nearly a line.
    decay, share = _beside_a_line(np.expm1(-fit.rate * np.arange(n)), time)
    if share <= 1e-12:
        return Curvature(0.0, 1.0, float(n))  # no curvature at all: the decay is the line
    columns = np.stack([np.full(n, 1.0 / np.sqrt(n)), time, decay])
    regression = correlated_fit(columns, z, noise_floor=series.noise_floor)
    noise = fit.sse / (n - 3) * regression.inflation
    is_open = fit.explained >= fit.explained.max() - _OPEN * noise
    length = float(_arcs(n, largest_rate) @ (is_open[1:] & is_open[:-1]))
    t, df = regression.t(), regression.df
    tail = special.stdtr(df, -t)
    with np.errstate(over="ignore"):
        tail += length / (2.0 * np.pi) * (1.0 + t * t / df) ** (-0.5 * (df - 1.0))
    pvalue = regression.averaged(np.where(t > 0.0, tail, 1.0))
    r = max(regression.correlation, 0.0)
    mean = max(float(regression.weight @ t), 0.0)
    return Curvature(mean * mean, pvalue, n * (1.0 - r) / (1.0 + r))


def end_rises(series: Series) -> bool:
    """Does the second half of a window rise beyond doubt?

    A curve that falls and then rises bends as a decay does. The slope of its second half, by
    ``correlated_fit``, is then positive at a level that costs a decay next to nothing, 0.001.
    """
    end = series.values[series.values.size // 2 :]
    time = np.linspace(-1.0, 1.0, end.size)
    if end.size < _SHORTEST_END or float(time @ end) <= 0.0:
        return False
    centred = end - end.mean()
    columns = np.stack([np.ones(end.size), time]) / np.sqrt(end.size)
    fit = correlated_fit(columns, centred, noise_floor=series.noise_floor)
    return fit.averaged(special.stdtr(fit.df, -fit.t())) < _RISE_LEVEL


def _beside_a_line(decay: FloatArray, time: FloatArray) -> tuple[FloatArray, float]:
    """What of decays, shape (..., n), no line explains, at unit length, and its share of them."""
    centred = decay - decay.mean(axis=-1, keepdims=True)
    rest = centred - (centred @ time)[..., None] * time
    power = np.sum(rest * rest, axis=-1)
    share = power / np.maximum(np.sum(centred * centred, axis=-1), np.finfo(np.float64).tiny)
    unit = rest / np.sqrt(np.maximum(power, np.finfo(np.float64).tiny))[..., None]
    return unit, share


@lru_cache(maxsize=16)
def _arcs(n: int, largest_rate: float) -> FloatArray:
    """Angles between the curvatures of neighbouring rates of the grid, shape (rates - 1,)."""
    exponents = grid_of(n, largest_rate=largest_rate)
    m = min(n, _TABULATED)
    time = np.linspace(-1.0, 1.0, m)
    time /= np.sqrt(time @ time)
    curves = _beside_a_line(np.expm1(-np.outer(exponents, np.linspace(0.0, 1.0, m))), time)[0]
    chord = np.linalg.norm(np.diff(curves, axis=0), axis=1)
    arcs = 2.0 * np.arcsin(np.minimum(0.5 * chord, 1.0))
    if n > m:
        # cos of the angle between exp(-a t) and exp(-b t) on [0, inf): 2 sqrt(ab) / (a + b).
        half = 0.5 * np.diff(np.log(exponents))
        arcs = np.where(exponents[1:] > _FAST, np.arccos(1.0 / np.cosh(half)), arcs)
    return np.asarray(arcs)
