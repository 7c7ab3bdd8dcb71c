"""The largest stable learning rate at a given sharpness, for the updates of torch's optimizers.

On a quadratic with curvature h > 0 along one direction, every optimizer here is a linear recursion
of two steps. It is stable if and only if both roots z of its characteristic polynomial lie inside
the unit circle. For z^2 - t z + d that is |d| < 1 and |t| < 1 + d (Jury), and in each case below
the root that leaves first is z = -1: the weights jump from side to side. The bound falls with h, so
the largest h, the sharpness, decides for all directions at once.

Cohen et al. 2021 (arXiv 2103.00065) have the limits of heavy-ball and Nesterov momentum, Cohen et
al. 2022 (arXiv 2207.14484) that of Adam; dampening and decay are worked out here from torch's code.
A sharpness that is not positive limits nothing, and every function then says infinity: there is no
curvature to overshoot, and from a saddle or a maximum descent moves away at any rate.
"""

from __future__ import annotations

from math import inf

from lrsearch.errors import InvalidArgumentError, require_not_negative, require_number


def heavy_ball_limit(sharpness: float, momentum: float = 0.0, dampening: float = 0.0) -> float:
    """Above which rate does gradient descent, or SGD with momentum, diverge on a quadratic?

    As ``torch.optim.SGD``: b <- mu b + (1 - tau) h x, x <- x - lr b, whose polynomial is
    z^2 - (1 + mu - a) z + mu with a = lr (1 - tau) h. Stable for 0 < a < 2 (1 + mu):

        lr < 2 (1 + mu) / ((1 - tau) h),   2 / h without momentum.

    Args:
        sharpness: h, the largest eigenvalue of the Hessian; of the preconditioned Hessian for
            RMSprop, whose own momentum is a heavy ball too. Units of loss / weight^2.
        momentum: mu in [0, 1). At 1 and above nothing is stable.
        dampening: tau in [0, 1). At 1 the velocity never sees a second gradient. torch applies it
            only with momentum; so does this.

    Returns:
        The limit, in units of the learning rate; infinity if the sharpness is not positive.

    Raises:
        ValueError: if an argument is outside its range, or the sharpness is NaN.
        TypeError: if one is not a number.

    Example:
        >>> heavy_ball_limit(4.0), heavy_ball_limit(4.0, 0.5)
        (0.5, 0.75)
    """
    mu, tau = _fraction("momentum", momentum), _fraction("dampening", dampening)
    if mu == 0.0:
        tau = 0.0
    return _over(2.0 * (1.0 + mu) / (1.0 - tau), sharpness)


def nesterov_limit(sharpness: float, momentum: float) -> float:
    """Above which rate does SGD with Nesterov momentum, as torch has it, diverge on a quadratic?

    b <- mu b + h x, x <- x - lr (h x + mu b), whose polynomial is
    z^2 - (1 + mu - a (1 + mu)) z + mu (1 - a) with a = lr h. Stable for 0 < a and

        lr < 2 (1 + mu) / ((1 + 2 mu) h),

    which is less than the heavy ball's: the look-ahead counts the last gradient twice.

    Args:
        sharpness: h, the largest eigenvalue of the Hessian.
        momentum: mu in [0, 1).

    Returns:
        The limit, in units of the learning rate; infinity if the sharpness is not positive.

    Raises:
        ValueError: if an argument is outside its range, or the sharpness is NaN.
        TypeError: if one is not a number.

    Example:
        >>> nesterov_limit(4.0, 0.5)
        0.375
    """
    mu = _fraction("momentum", momentum)
    return _over(2.0 * (1.0 + mu) / (1.0 + 2.0 * mu), sharpness)


def averaged_limit(sharpness: float, beta: float, decoupled_decay: float = 0.0) -> float:
    """Above which rate does descent along a moving average of gradients, as Adam's, diverge?

    m <- beta m + (1 - beta) h x, x <- (1 - lr omega) x - lr m, whose polynomial is
    z^2 - (1 + beta - lr omega - lr (1 - beta) h) z + beta (1 - lr omega). Stable for

        lr < 2 (1 + beta) / ((1 - beta) h + (1 + beta) omega),

    2 (1 + beta) / ((1 - beta) h) without decay (Cohen et al. 2022): 19 times the limit of plain
    descent at Adam's default of 0.9. For Adam h is the sharpness of the preconditioned Hessian; its
    bias correction is over after some 1 / (1 - beta) steps and does not move the limit.

    Args:
        sharpness: h, the largest eigenvalue of the (preconditioned) Hessian.
        beta: beta1 in [0, 1).
        decoupled_decay: omega >= 0, AdamW's weight decay, in units of 1 / learning rate. Decay that
            is added to the gradient belongs to h instead.

    Returns:
        The limit, in units of the learning rate; infinity if the sum in the denominator is not
        positive.

    Raises:
        ValueError: if an argument is outside its range, or the sharpness is NaN.
        TypeError: if one is not a number.

    Example:
        >>> averaged_limit(4.0, 0.5), averaged_limit(4.0, 0.5, decoupled_decay=1.0)
        (1.5, 0.8571428571428571)
    """
    first = _fraction("beta", beta)
    omega = require_not_negative("decoupled_decay", decoupled_decay)
    h = _known(sharpness)
    return _over(2.0 * (1.0 + first), (1.0 - first) * h + (1.0 + first) * omega)


def _over(numerator: float, sharpness: float) -> float:
    h = _known(sharpness)
    return numerator / h if h > 0.0 else inf


def _known(sharpness: float) -> float:
    h = require_number("sharpness", sharpness)
    if h != h:
        raise InvalidArgumentError(
            "sharpness must be a number, got NaN; check that the loss is finite"
        )
    return h


def _fraction(name: str, value: float) -> float:
    number = require_not_negative(name, value)
    if number >= 1.0:
        raise InvalidArgumentError(
            f"{name} must lie in [0, 1), got {value!r}; at 1 and above no rate is stable"
        )
    return number
