"""A window of losses, checked once and brought to a scale on which sums of squares are safe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrsearch.errors import InvalidArgumentError, InvalidTypeError

FloatArray: TypeAlias = NDArray[np.float64]
Losses: TypeAlias = ArrayLike | Sequence[float]


@dataclass(frozen=True, slots=True)
class Series:
    """Losses y as ``location + scale * values``, with ``values`` centred and within [-1, 1].

    Sums of squares of ``values`` neither overflow nor underflow, whatever the loss's unit, and keep
    their digits when the loss varies little around a large mean.

    Attributes:
        values: shape (window,); all zero if the losses are constant.
        location: mean of the losses [loss].
        scale: largest distance from the mean [loss]; 0 if they are constant or not all finite.
        finite: whether every loss is finite. If not, ``values`` is zero and means nothing.
        noise_floor: sum of squares of ``values`` below which there is only rounding error.
    """

    values: FloatArray
    location: float
    scale: float
    finite: bool
    noise_floor: float

    @property
    def degenerate(self) -> bool:
        """Whether there is nothing to fit: constant, or not all finite."""
        return self.scale == 0.0


def as_losses(losses: Losses) -> FloatArray:
    """One-dimensional float64 copy-free view of the losses.

    Raises:
        InvalidTypeError: if they are not numbers.
        InvalidArgumentError: if they are not one-dimensional.
    """
    try:
        array = np.asarray(losses, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(
            f"losses must be a one-dimensional sequence of numbers, got {type(losses).__name__}"
        ) from error
    if array.ndim != 1:
        raise InvalidArgumentError(f"losses must be one-dimensional, got shape {array.shape}")
    return array


def standardize(losses: Losses, *, minimum: int) -> Series:
    """Check a window and bring it to the unit scale.

    Args:
        losses: shape (window,).
        minimum: fewest points that make sense to the caller.

    Raises:
        InvalidArgumentError: if there are fewer.
    """
    y = as_losses(losses)
    if y.size < minimum:
        raise InvalidArgumentError(f"losses must have at least {minimum} points, got {y.size}")
    peak = float(np.max(np.abs(y)))
    if not np.isfinite(peak):
        return Series(np.zeros(y.size), float("nan"), 0.0, False, 0.0)
    if peak == 0.0:
        return Series(np.zeros(y.size), 0.0, 0.0, True, 0.0)
    relative = y / peak  # first to [-1, 1]: the plain sum of huge losses would overflow
    mean = float(np.mean(relative))
    centred = relative - mean
    spread = float(np.max(np.abs(centred)))
    rounding = 4.0 * float(np.finfo(np.float64).eps)
    if spread <= rounding:
        return Series(np.zeros(y.size), mean * peak, 0.0, True, 0.0)
    noise_floor = y.size * (rounding / spread) ** 2
    return Series(centred / spread, mean * peak, spread * peak, True, noise_floor)
