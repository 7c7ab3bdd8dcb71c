"""Regression on a window whose noise is correlated and changes its size.

Mini-batch losses depend on one another and their noise often fades as the loss falls. Taken for
independent and equal, they make chance look like evidence. Here the noise is AR(1) times a standard
deviation that is linear in time, and what is not known about the correlation is averaged over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrsearch.stats.series import FloatArray

# The correlation is searched on a grid of its Fisher transform: from -0.4 to 0.995.
_LOWEST, _HIGHEST, _GRID = -0.4, 3.0, 17
_NEGLIGIBLE = 1e-4
# The noise at the window's ends is between 0.1 and 1.9 times that in the middle.
_STEEPEST_PROFILE = 0.9
# The correlation of short windows is underestimated, since trend and noise look alike there: the
# standard errors grow by sqrt(1 + 100 r^2 / n). Measured on AR(1) noise up to 0.95, n >= 50.
_SHORTNESS = 100.0


@dataclass(frozen=True, slots=True)
class CorrelatedFit:
    """One coefficient of a regression, for every correlation r that the losses leave possible.

    Attributes:
        coefficient, stderr: shape (correlations,); stderr is 0 for a fit without residual.
        weight: shape (correlations,), the posterior probability of each r; sums to 1.
        correlation: posterior mean of r.
        inflation: posterior mean of (1 + r) / (1 - r), by which AR(1) noise blurs slow trends.
        df: residual degrees of freedom.
    """

    coefficient: FloatArray
    stderr: FloatArray
    weight: FloatArray
    correlation: float
    inflation: float
    df: float

    def t(self, null: float = 0.0) -> FloatArray:
        """(coefficient - null) / stderr for every r; infinite, or 0, where stderr is 0."""
        gap = self.coefficient - null
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(gap == 0.0, 0.0, gap / self.stderr))

    def averaged(self, pvalue: NDArray[np.floating[Any]]) -> float:
        """Posterior mean of p-values, shape (correlations,), each at most 1."""
        return float(self.weight @ np.minimum(pvalue, 1.0))


def correlated_fit(columns: FloatArray, y: FloatArray, *, noise_floor: float) -> CorrelatedFit:
    """The last coefficient of y = columns' beta + D e, with e stationary AR(1) noise.

    D, the standard deviation over time, is a line through the ordinary residuals' sizes (each
    divided by the square root of one minus its leverage). For each correlation r the coefficient is
    that of generalised least squares, and r has the posterior of a flat prior and the restricted
    likelihood (Harville, 1974)

        l(r) = -1/2 (log |R| + log |X' R^-1 X| + (n - p) log RSS(r)),

    X = D^-1 columns and R the AR(1) correlation matrix, whose inverse has three diagonals: with the
    moments of X at lag 0 and 1 every r costs a p by p inverse.

    The standard errors are widened where the squared residuals are large at the losses that decide
    the coefficient (White's HC1 at the mean correlation; never narrowed), and by
    sqrt(1 + 100 r^2 / n) for positive r.

    Args:
        columns: shape (p, n), linearly independent, of comparable norms.
        y: shape (n,), n > p.
        noise_floor: sum of squares of y below which there is only rounding error.
    """
    p, n = columns.shape
    basis, triangle = np.linalg.qr(columns.T)
    coordinates = basis.T @ y
    ordinary = float(coordinates[-1] / triangle[-1, -1])
    residual = y - basis @ coordinates
    df = float(n - p)
    if float(residual @ residual) <= noise_floor:
        one = np.ones(1)
        return CorrelatedFit(np.array([ordinary]), np.zeros(1), one, 0.0, 1.0, df)
    leverage = np.einsum("ij,ij->i", basis, basis)
    deviation = _deviation(residual / np.sqrt(np.maximum(1.0 - leverage, 0.05)))
    # With the residual for y, RSS keeps its digits, and the coefficient comes as a correction.
    scaled = np.vstack([columns, residual]) / deviation
    fisher = np.linspace(_LOWEST, _HIGHEST, _GRID)
    moments = _moments(scaled)
    coarse = _posterior(moments, n, np.tanh(fisher))[2]
    likely = np.flatnonzero(coarse > _NEGLIGIBLE * coarse.max())
    ends = fisher[max(likely[0] - 1, 0)], fisher[min(likely[-1] + 1, _GRID - 1)]
    correlations = np.tanh(np.linspace(*ends, _GRID))
    correction, variance, weight = _posterior(moments, n, correlations)
    mean = float(weight @ correlations)
    positive = np.maximum(correlations, 0.0)
    variance *= _loudness(scaled, mean) * (1.0 + _SHORTNESS * positive**2 / n)
    return CorrelatedFit(
        coefficient=ordinary + correction,
        stderr=np.sqrt(variance),
        weight=weight,
        correlation=mean,
        inflation=float(weight @ ((1.0 + correlations) / (1.0 - correlations))),
        df=df,
    )


def _deviation(residual: FloatArray) -> FloatArray:
    """Line through the residuals' sizes, scaled to mean square 1; shape (n,)."""
    size = np.abs(residual)
    time = np.linspace(-1.0, 1.0, size.size)
    steepness = float(size @ time) / float(time @ time) / float(size.mean())
    line = 1.0 + np.clip(steepness, -_STEEPEST_PROFILE, _STEEPEST_PROFILE) * time
    return np.asarray(line / np.sqrt(np.mean(line * line)))


def _moments(scaled: FloatArray) -> FloatArray:
    """Products of the rows, shape (p + 1, n), at lag 0, at lag 1 and at the ends alone."""
    level = scaled @ scaled.T
    neighbours = scaled[:, 1:] @ scaled[:, :-1].T
    ends = scaled[:, [0, -1]] @ scaled[:, [0, -1]].T
    return np.stack([level, neighbours + neighbours.T, ends])


def _posterior(
    moments: FloatArray, n: int, correlations: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Last coefficient, its variance and the weight for every correlation.

    ``moments`` of the p columns and, last, y. The grid is even in the Fisher transform, so a prior
    that is flat in r has density 1 - r^2 on it.
    """
    level, neighbours, ends = moments
    p = level.shape[0] - 1
    r = correlations[:, None, None]
    products = ((1.0 + r * r) * level - r * neighbours - r * r * ends) / (1.0 - r * r)
    inner, cross = products[:, :p, :p], products[:, :p, p]
    inverse = np.linalg.inv(inner)
    beta = np.einsum("gij,gj->gi", inverse, cross)
    tiny = np.finfo(np.float64).tiny
    rss = np.maximum(products[:, p, p] - np.einsum("gi,gi->g", beta, cross), tiny)
    shrunk = np.log1p(-correlations * correlations)
    log_weight = shrunk - 0.5 * (
        (n - 1) * shrunk + np.linalg.slogdet(inner)[1] + (n - p) * np.log(rss)
    )
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    return beta[:, -1], rss / (n - p) * inverse[:, -1, -1], weight


def _loudness(scaled: FloatArray, correlation: float) -> float:
    """HC1 variance of the last coefficient relative to the ordinary one, at least 1."""
    white = scaled.copy()
    white[:, 1:] -= correlation * scaled[:, :-1]
    white[:, 0] *= np.sqrt(1.0 - correlation * correlation)
    basis = np.linalg.qr(white[:-1].T)[0]
    residual = white[-1] - basis @ (basis.T @ white[-1])
    power = float(residual @ residual)
    if power == 0.0:
        return 1.0
    n, p = basis.shape
    loud = float(np.sum((basis[:, -1] * residual) ** 2))
    return float(max(1.0, loud * (n - p) / power))
