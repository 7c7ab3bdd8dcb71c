"""The power that no test of a decay against lines can exceed, for noise of known law.

A test of level alpha against *every* line has level alpha against one of them, the one nearest to
the decay m. Against that one the likelihood ratio is most powerful (Neyman & Pearson, 1933), so its
power is a bound. For normal noise of covariance Sigma it is

    Phi(d - z_(1 - alpha)),   d^2 = min over lines l of (m - l)' Sigma^(-1) (m - l),

and the bound is attained by the one-sided normal test of the generalised-least-squares amplitude of
m beside a line, which no line can fool. The oracle knows m, the noise's law and its size; a test
of losses knows none of them.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from experiments.calibration.shapes import FloatArray, Shape

_DRAWS = 20_000_000  # random numbers for the likelihood ratio of noise that is not normal


def oracle_power(shape: Shape, n: int, alpha: float) -> float:
    """Largest power against lines at level alpha.

    Exact for normal noise. For t noise (independent) the likelihood ratio of m against the nearest
    line is simulated, with up to 20 000 replicates: a bound all the same, as any line gives one.

    Args:
        shape: a curve with its noise.
        n: losses in the window.
        alpha: level, in (0, 1).
    """
    gap = distance_from_lines(shape, n)
    if shape.noise.tails is None:
        distance = float(np.linalg.norm(shape.noise.whiten(gap)))
        return float(special.ndtr(distance - special.ndtri(1.0 - alpha)))
    return _simulated(gap, shape.noise.tails, alpha)


def distance_from_lines(shape: Shape, n: int) -> FloatArray:
    """The curve less the nearest line, in the metric of the noise; shape (n,)."""
    curve = shape.curve(n)
    lines = np.column_stack([np.ones(n), np.linspace(-1.0, 1.0, n)])
    white = shape.noise.whiten
    nearest = np.linalg.lstsq(white(lines), white(curve), rcond=None)[0]
    return np.asarray(curve - lines @ nearest)


def _simulated(gap: FloatArray, tails: float, alpha: float) -> float:
    rng = np.random.default_rng(20240)
    unit = np.sqrt(tails / (tails - 2.0))  # t noise is scaled to variance 1

    def density(noise: FloatArray) -> FloatArray:
        return -0.5 * (tails + 1.0) * np.log1p((noise * unit) ** 2 / tails)

    def ratios(shift: FloatArray) -> FloatArray:
        count, chunk = min(20_000, _DRAWS // gap.size), 500
        parts = []
        for _ in range(count // chunk):
            noise = rng.standard_t(tails, (chunk, gap.size)) / unit + shift
            parts.append(np.sum(density(noise - gap) - density(noise), axis=1))
        return np.concatenate(parts)

    critical = np.quantile(ratios(np.zeros_like(gap)), 1.0 - alpha)
    return float(np.mean(ratios(gap) > critical))
