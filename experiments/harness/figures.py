"""Figures of loss curves in the papers' manner: mean of the runs, standard error as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]
_POINTS = 1500  # drawn per curve


def moving_average(curve: NDArray[np.floating], window: int) -> FloatArray:
    """Mean of each stretch of ``window`` losses, shape (steps - window + 1,)."""
    values = np.asarray(curve, dtype=np.float64)
    width = min(max(window, 1), values.size)
    with np.errstate(invalid="ignore", over="ignore"):
        # Each sum by itself: running sums would carry an exploded loss on to all later ones.
        return np.convolve(values, np.full(width, 1.0 / width), mode="valid")


def draw_curves(
    axes: Axes,
    groups: Mapping[str, Sequence[NDArray[np.floating]]],
    *,
    window: int = 1,
    ceiling: float | None = None,
    colors: Mapping[str, str] | None = None,
) -> None:
    """One line per group: the mean over its runs, with a band of one standard error.

    Args:
        axes: drawn on.
        groups: label -> loss curves; drawn as far as all of a group go.
        window: of the moving average.
        ceiling: groups whose averaged loss never falls below it stay out, as in the papers.
        colors: by label.
    """
    for label, curves in groups.items():
        shortest = min(curve.size for curve in curves)  # a run may have ended early
        smooth = np.stack([moving_average(curve[:shortest], window) for curve in curves])
        with np.errstate(invalid="ignore", over="ignore"):
            mean = smooth.mean(axis=0)
            error = smooth.std(axis=0, ddof=1) / np.sqrt(len(smooth)) if len(smooth) > 1 else 0.0
        if not np.any(np.isfinite(mean)) or (ceiling is not None and np.nanmin(mean) > ceiling):
            continue
        steps = np.arange(mean.size) + min(window, shortest) - 1
        every = max(1, mean.size // _POINTS)
        steps, mean = steps[::every], mean[::every]
        color = None if colors is None else colors.get(label)
        (line,) = axes.plot(steps, mean, label=label, linewidth=1.2, color=color)
        if len(smooth) > 1:
            band = np.asarray(error)[::every]
            axes.fill_between(
                steps, mean - band, mean + band, color=line.get_color(), alpha=0.25, linewidth=0
            )
    if ceiling is not None:
        axes.set_ylim(top=ceiling)
