"""The straight line through a window of losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrsearch.stats.series import FloatArray, Losses, Series, standardize


@dataclass(frozen=True, slots=True)
class LineFit:
    """Least-squares line ``intercept + slope * step``, step counted from 0.

    Attributes:
        slope: [loss per step].
        intercept: value at step 0 [loss].
        sse: sum of squared errors [loss^2].
        slope_stderr: standard error of the slope for independent errors [loss per step]; NaN for
            fewer than 3 points.
        n: number of points.

    Every field but ``n`` is NaN if a loss is not finite.
    """

    slope: float
    intercept: float
    sse: float
    slope_stderr: float
    n: int

    def predict(self, steps: FloatArray) -> FloatArray:
        """Value of the line at ``steps``, any shape [loss]."""
        return self.intercept + self.slope * steps


def fit_line(losses: Losses) -> LineFit:
    """Fit a straight line to a window of losses by least squares.

    With x the centred step index, slope = sum(x y) / sum(x^2), and the slope's standard error is
    sqrt(sse / (n - 2) / sum(x^2)). Computed from centred, scaled values, so that small changes
    around a large mean keep their digits and large losses do not overflow.

    Args:
        losses: shape (window,), at least 2 points [loss].

    Raises:
        ValueError: for fewer than 2 points, or more than one dimension.
        TypeError: if the losses are not numbers.

    Example:
        >>> fit = fit_line([3.0, 2.0, 1.0])
        >>> fit.slope, fit.intercept, fit.sse
        (-1.0, 3.0, 0.0)
    """
    series = standardize(losses, minimum=2)
    n = series.values.size
    if not series.finite:
        nan = float("nan")
        return LineFit(nan, nan, nan, nan, n)
    slope, sse = line_of(series)
    centre = (n - 1) / 2.0
    sse_loss = sse * series.scale * series.scale
    stderr = series.scale * np.sqrt(sse / (n - 2) / step_spread(n)) if n > 2 else float("nan")
    slope_loss = slope * series.scale
    return LineFit(
        slope=slope_loss,
        intercept=series.location - slope_loss * centre,
        sse=sse_loss,
        slope_stderr=float(stderr),
        n=n,
    )


def line_of(series: Series) -> tuple[float, float]:
    """Slope per step and sum of squared errors of the line, both on the series' own scale."""
    z = series.values
    x = np.arange(z.size) - (z.size - 1) / 2.0
    slope = float(x @ z) / step_spread(z.size)
    residual = z - slope * x
    sse = float(residual @ residual)
    return slope, sse if sse > series.noise_floor else 0.0


def step_spread(n: int) -> float:
    """Sum of squares of the centred step index 0 .. n - 1: n (n^2 - 1) / 12."""
    return n * (float(n) * n - 1.0) / 12.0
