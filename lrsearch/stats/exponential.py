"""The exponential through a window of losses: a global fit by variable projection.

The model ``A exp(-B t) + C`` is linear in (A, C) once B is fixed, so the three-dimensional, badly
conditioned least-squares problem becomes a search along one line (Golub & Pereyra, 1973). That line
is searched on a logarithmic grid that covers every rate the window can show, and the best valleys
are refined; no starting value is needed and none can be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, sqrt

import numpy as np

from lrsearch.stats.line import step_spread
from lrsearch.stats.series import FloatArray, Losses, Series, standardize

# Exponent k = B (n - 1), the decay over the whole window. Below the first the curve is a line to
# all digits that matter; above the second, per step, nothing is left after one step.
_SMALLEST_EXPONENT = 1e-5
_LARGEST_EXPONENT_PER_STEP = 40.0
_LARGEST_GROWTH_EXPONENT = 690.0  # exp(-k) of a growing curve's amplitude must not underflow
_GRID_PER_DECADE = 8
_VALLEYS = 3
_PARABOLAS = 20
_SHRINK = 0.1
_CLOSE_ENOUGH = 1e-4  # in ln k; the last vertex is closer by far, as its error falls like half^2
_THREE = np.array([-1.0, 0.0, 1.0])
# Up to this many points the basis is written out, which keeps every digit of a curve that is
# nearly a line; beyond, its inner products are summed in blocks.
_DENSE = 512


@dataclass(frozen=True, slots=True)
class ExponentialFit:
    """Least-squares curve ``amplitude * exp(-rate * step) + offset``, step counted from 0.

    Attributes:
        amplitude: [loss]; 0 if no decay fits better than a constant.
        rate: [1 / step].
        offset: [loss].
        sse: sum of squared errors [loss^2].
        n: number of points.

    Every field but ``n`` is NaN if a loss is not finite.
    """

    amplitude: float
    rate: float
    offset: float
    sse: float
    n: int

    def predict(self, steps: FloatArray) -> FloatArray:
        """Value of the curve at ``steps``, any shape [loss]."""
        return self.amplitude * np.exp(-self.rate * steps) + self.offset


@dataclass(frozen=True, slots=True)
class UnitExponential:
    """The fit on the series' own scale, with its residuals, shape (window,).

    ``explained``, shape (rates,): sum of squares that a decay of each rate of the search's grid
    explains; see ``grid_of``.
    """

    amplitude: float
    rate: float
    offset: float
    sse: float
    residual: FloatArray
    explained: FloatArray


def fit_exponential(
    losses: Losses, *, decay_only: bool = True, largest_rate: float = _LARGEST_EXPONENT_PER_STEP
) -> ExponentialFit:
    """Fit ``A exp(-B t) + C`` to a window of losses: the global least-squares optimum.

    For each B the best (A, C) is the regression of the losses on ``e = exp(-B t)``:
    A = cov(e, y) / var(e), and the error is SSE(B) = S_yy - cov(e, y)^2 / var(e). The search over B
    covers decays from 1e-5 e-foldings per window to 40 e-foldings per step.

    Args:
        losses: shape (window,), at least 3 points [loss].
        decay_only: only A >= 0 and B > 0 (the losses fall and level off). Otherwise A has any sign
            and B may be negative: saturating rises and growth fit too.
        largest_rate: largest B that is considered [1 / step]; at most 40.

    Raises:
        ValueError: for fewer than 3 points, or more than one dimension.
        TypeError: if the losses are not numbers.

    Example:
        >>> import numpy as np
        >>> fit = fit_exponential(2.0 * np.exp(-0.05 * np.arange(100)) + 0.5)
        >>> round(fit.amplitude, 6), round(fit.rate, 6), round(fit.offset, 6)
        (2.0, 0.05, 0.5)
    """
    series = standardize(losses, minimum=3)
    n = series.values.size
    if not series.finite:
        nan = float("nan")
        return ExponentialFit(nan, nan, nan, nan, n)
    unit = exponential_of(series, decay_only=decay_only, largest_rate=largest_rate)
    return ExponentialFit(
        amplitude=unit.amplitude * series.scale,
        rate=unit.rate,
        offset=series.location + unit.offset * series.scale,
        sse=unit.sse * series.scale * series.scale,
        n=n,
    )


def exponential_of(
    series: Series, *, decay_only: bool = True, largest_rate: float = _LARGEST_EXPONENT_PER_STEP
) -> UnitExponential:
    """The fit on the series' own scale.

    Args:
        series: at least 3 points.
        decay_only: only A >= 0 and B > 0.
        largest_rate: largest B per step that is considered.
    """
    z = series.values
    steps = z.size - 1
    best = _solve(z, *_search(z, _reach(z.size, largest_rate), signed=decay_only), decay_only)
    if not decay_only:
        growth, explained = _search(
            z[::-1], min(_LARGEST_GROWTH_EXPONENT, 40.0 * steps), signed=False
        )
        mirrored = _solve(z[::-1], growth, explained, signed=False)
        if mirrored.sse < best.sse:
            best = replace(
                mirrored,
                amplitude=mirrored.amplitude * float(np.exp(-growth)),
                rate=-mirrored.rate,
                residual=mirrored.residual[::-1],
            )
    return replace(best, sse=0.0) if best.sse <= series.noise_floor else best


def grid_of(n: int, *, largest_rate: float = _LARGEST_EXPONENT_PER_STEP) -> FloatArray:
    """Exponents over a window of n points, rate times n - 1, that the search's grid holds."""
    return np.exp(_grid(n, _reach(n, largest_rate))[0])


def _reach(n: int, largest_rate: float) -> float:
    largest = min(largest_rate, _LARGEST_EXPONENT_PER_STEP) * (n - 1)
    return max(largest, 10.0 * _SMALLEST_EXPONENT)


def _search(z: FloatArray, largest_exponent: float, *, signed: bool) -> tuple[float, FloatArray]:
    """The exponent over the window that explains most of z, and what the grid's explain."""
    grid, basis = _grid(z.size, largest_exponent)
    low, high = grid[0], grid[-1]
    gain = _explained(z, np.exp(grid), signed=signed) if basis is None else basis.explain(z, signed)
    peak = np.ones(grid.size, dtype=bool)
    peak[1:] &= gain[1:] >= gain[:-1]
    peak[:-1] &= gain[:-1] >= gain[1:]
    peaks = np.flatnonzero(peak)
    centres = grid[peaks[np.argsort(gain[peaks])[::-1][:_VALLEYS]]]
    # Successive parabolas through three points of ln k, closer together once their vertex holds.
    half = np.full(centres.size, grid[1] - grid[0])
    rows = np.arange(centres.size)
    for _ in range(_PARABOLAS):
        points = np.clip(centres[:, None] + half[:, None] * _THREE, low, high)
        found = _explained(z, np.exp(points.ravel()), signed=signed).reshape(points.shape)
        left, middle, right = found.T
        bend = 2.0 * middle - left - right
        inside = (middle >= left) & (middle >= right) & (bend > 0.0)
        move = np.zeros(centres.size)
        move[inside] = (0.5 * half * (right - left))[inside] / bend[inside]
        highest = points[rows, np.argmax(found, axis=1)]
        moved = np.clip(np.where(inside, centres + move, highest), low, high)
        step, centres = np.abs(moved - centres), moved
        half = np.where(inside & (step < 0.5 * half), step + _SHRINK * half, half)
        if np.all(half < _CLOSE_ENOUGH):
            break
    exponents = np.exp(centres)
    if exponents.size == 1:
        return float(exponents[0]), gain
    return float(exponents[np.argmax(_explained(z, exponents, signed=signed))]), gain


@dataclass(frozen=True, slots=True)
class _Basis:
    """The centred decays of a grid, written out: shape (rates, window), and their squares' sums."""

    rows: FloatArray
    spread: FloatArray

    def explain(self, z: FloatArray, signed: bool) -> FloatArray:
        return _gain(self.rows @ z, self.spread, signed=signed)


@lru_cache(maxsize=16)
def _grid(n: int, largest_exponent: float) -> tuple[FloatArray, _Basis | None]:
    """ln k over the search's reach and, for short windows, the decays (lengths recur)."""
    low, high = np.log(_SMALLEST_EXPONENT), np.log(largest_exponent)
    grid = np.linspace(low, high, ceil((high - low) / np.log(10.0) * _GRID_PER_DECADE) + 1)
    return grid, _written_out(n, np.exp(grid) / (n - 1)) if n <= _DENSE else None


def _written_out(n: int, rates: FloatArray) -> _Basis:
    # expm1 keeps the digits of a decay that is nearly a line.
    rows = np.expm1(-rates[:, None] * np.arange(n))
    rows -= rows.mean(axis=1, keepdims=True)
    return _Basis(rows, np.einsum("ij,ij->i", rows, rows))


def _gain(covariance: FloatArray, spread: FloatArray, *, signed: bool) -> FloatArray:
    """cov^2 / var; 0 for a basis that does not vary or, if signed, for a rise."""
    if signed:
        covariance = np.maximum(covariance, 0.0)
    return covariance * covariance / np.maximum(spread, np.finfo(np.float64).tiny)


def _explained(z: FloatArray, exponents: FloatArray, *, signed: bool) -> FloatArray:
    """Sum of squares of the centred z that exp(-k t / (n - 1)) explains, for every exponent k."""
    rates = exponents / (z.size - 1)
    if z.size <= _DENSE:
        return _written_out(z.size, rates).explain(z, signed)
    return _gain(_dot_with_powers(z, rates), _spread_of_powers(z.size, rates), signed=signed)


def _dot_with_powers(z: FloatArray, rates: FloatArray) -> FloatArray:
    """sum_t exp(-rate t) z_t for every rate: exact, with sqrt(n) instead of n exponentials a rate.

    exp(-rate (i w + j)) = exp(-rate w)^i exp(-rate j): the sum over j is one matrix product over
    the blocks of width w, the sum over the blocks i a second, small one.
    """
    width = ceil(sqrt(z.size))
    blocks = ceil(z.size / width)
    padded = np.zeros(blocks * width)
    padded[: z.size] = z
    within = np.exp(-np.outer(rates, np.arange(width))) @ padded.reshape(blocks, width).T
    across = np.exp(-np.outer(rates, width * np.arange(blocks)))
    dots: FloatArray = np.einsum("ij,ij->i", within, across)
    return dots


def _spread_of_powers(n: int, rates: FloatArray) -> FloatArray:
    """sum_t (exp(-rate t) - mean)^2 over t = 0 .. n - 1, in closed form.

    The difference of the two geometric series loses its digits when the decay is nearly a line;
    there the spread is rate^2 times that of the step index, damped by exp(-rate (n - 1)).
    """
    first = np.expm1(-rates * n) / np.expm1(-rates)
    second = np.expm1(-2.0 * rates * n) / np.expm1(-2.0 * rates)
    nearly_line = rates * rates * step_spread(n) * np.exp(-rates * (n - 1))
    return np.where(rates * n < 1e-3, nearly_line, second - first * first / n)


def _solve(z: FloatArray, exponent: float, explained: FloatArray, signed: bool) -> UnitExponential:
    """Amplitude, offset and residuals at a fixed exponent, from the residuals themselves."""
    rate = exponent / (z.size - 1)
    basis = np.exp(-rate * np.arange(z.size))
    centre = float(basis.mean())
    centred = np.expm1(-rate * np.arange(z.size))
    centred -= centred.mean()
    variance = float(centred @ centred)
    amplitude = float(centred @ z) / variance if variance > 0.0 else 0.0
    if signed:
        amplitude = max(amplitude, 0.0)
    residual = z - amplitude * centred
    return UnitExponential(
        amplitude=amplitude,
        rate=rate,
        offset=-amplitude * centre,
        sse=float(residual @ residual),
        residual=residual,
        explained=explained,
    )
