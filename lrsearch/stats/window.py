"""How long a window must be for the curve's bend to lie inside it."""

from __future__ import annotations

from math import e, floor, inf, isfinite, sqrt

from lrsearch.errors import InvalidArgumentError, require_number, require_positive


def window_length(initial_loss: float, lr: float) -> int:
    """Steps after which an exponential decay has shown its bend.

    w = floor(2 sqrt(2) L0 / (lr e) + 1/2) ([E], Eq. 52): twice the latest step at which a decay
    from L0 can have its point of largest curvature. No floor or ceiling: those are the
    controller's.

    Args:
        initial_loss: L0, the loss of the first step [loss]. Its size counts, so that losses that
            start below zero have windows too.
        lr: learning rate, positive [1 / loss curvature].

    Raises:
        ValueError: if lr is not positive and finite, or initial_loss is not finite.

    Example:
        >>> window_length(2.3026, 0.0494)
        49
    """
    require_positive("lr", lr)
    size = abs(require_number("initial_loss", initial_loss))
    if not isfinite(size):
        raise InvalidArgumentError(f"initial_loss must be finite, got {initial_loss!r}")
    # The quotient first: a huge loss over a tiny rate must not overflow to infinity.
    steps = 2.0 * sqrt(2.0) / e * (size / lr)
    return floor(min(steps, 2.0**62) + 0.5)


def window_correction(sum_of_norms: float, norm_of_sum: float) -> float:
    """How much longer a window of mini-batch steps must be: path length over displacement.

    c_w = sum ||g_i|| / ||sum g_i|| ([E], Eq. 53), at least 1 by the triangle inequality.

    Args:
        sum_of_norms: sum of the gradients' norms over the window.
        norm_of_sum: norm of their sum.

    Returns:
        c_w; infinity if the gradients cancel, 1 if there are none or they are not finite.

    Raises:
        ValueError: if an argument is negative.
        TypeError: if an argument is not a number.

    Example:
        >>> window_correction(10.0, 4.0)
        2.5
    """
    path = require_number("sum_of_norms", sum_of_norms)
    displacement = require_number("norm_of_sum", norm_of_sum)
    if path < 0.0 or displacement < 0.0:
        raise InvalidArgumentError(
            f"norms must not be negative, got sum_of_norms={path!r}, norm_of_sum={displacement!r}"
        )
    if path == 0.0 or not (isfinite(path) and isfinite(displacement)):
        return 1.0
    if displacement == 0.0:
        return inf
    return max(1.0, path / displacement)
