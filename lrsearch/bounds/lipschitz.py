"""Lipschitz constants of losses: 1 / L as a learning rate.

Sources: [L] LipschitzLR (Yedida & Saha), sections 4 and 5; [N] Yedida & Saha, arXiv 1902.07399.
L stands for the largest gradient of the loss with respect to the last layer's weights. It is a loss
per weight, not a curvature: where L bounds the gradient, a step at rate 1 / L is no longer than 1,
and may yet be unstable.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from lrsearch.bounds.blocks import Matrix, as_rows
from lrsearch.bounds.losses import LOSSES
from lrsearch.errors import (
    InvalidArgumentError,
    require_at_least,
    require_choice,
    require_not_negative,
    require_positive,
)


def lipschitz_constant(
    loss: str,
    *,
    batch_size: int,
    k_z: float,
    classes: int | None = None,
    k_a: float | None = None,
    target_norm: float | None = None,
    weight_decay: float = 0.0,
    weight_norm: float = 0.0,
    supremum: bool = False,
    loss_scale: float = 1.0,
    tikhonov: float = 0.0,
) -> float:
    """How steep is a loss, at most, in the last layer's weights?

    With m = ``batch_size``, K_z = ``k_z``, k = ``classes``, K_a = ``k_a``, lambda =
    ``weight_decay`` and K = ``weight_norm``:

    ======================  ==============================  ============  =======================
    loss                    L                               source        with ``supremum``
    ======================  ==============================  ============  =======================
    "mse"                   |K_a - ‖y‖| K_z / m             [L] Eq. 9     (K_a + ‖y‖) K_z / m
    "binary_cross_entropy"  K_z / (2 m)                     [L] Eq. 18    K_z / sqrt(m)
    "cross_entropy"         (k - 1) K_z / (k m)             [L] Eq. 23    sqrt(2 / m) K_z
    + L2 penalty            + lambda K                      [L] 5.3       the same
    + Tikhonov              + 2 K ‖Gamma^T Gamma‖           [L] 5.3       the same
    ======================  ==============================  ============  =======================

    **With** ``supremum``, L bounds the Frobenius norm of the gradient for all the layer's weights,
    at any output, K_z being the Frobenius (or just the spectral) norm of the batch: by
    ‖X^T R‖ <= ‖X‖ ‖R‖, where a row of the residuals R is shorter than 1 (binary) or sqrt(2). "mse"
    needs outputs no longer than K_a, linear or ReLU. It is attained where all rows are parallel,
    and confidently wrong. The largest norm of a single row with ``batch_size=1`` bounds batches of
    every size; K_z = sqrt(‖X‖^2 + m) counts the bias among the weights. Earlier layers may have
    larger gradients.

    **Without**, in the papers' form, 1 / L is a heuristic that wants a safeguard. 1/2 and
    (k - 1)/k are residuals at a *uniform* output, not suprema. L bounds the gradient for the
    weights of *one* class, if every row gives its own class a probability of at least 1/k (as a
    correctly classified row does) and K_z is the *sum* of the rows' norms. Otherwise L may be
    exceeded: by 2 or k / (k - 1) at a confident wrong output; by sqrt(m) with the Frobenius norm
    (which serves if the rows are orthogonal); by sqrt(k / (k - 1)) in the norm for all classes.
    "mse" takes the least residual that an output of norm K_a can have, for the largest (the step
    should read K_a + ‖y‖): L holds for outputs no longer than K_a - 2 ‖y‖. Its absolute value is
    used, since the papers' own rates are positive where the difference is negative; at K_a = ‖y‖
    it vanishes, which is an error here.

    Args:
        loss: one of the three. "mse" is the papers', 1/(2m) times the sum of squares.
        batch_size: m, rows per gradient step, at least 1.
        k_z: K_z > 0, the largest norm of a batch of the last layer's inputs (of the data
            themselves for a linear model). The papers' code takes the Frobenius norm.
        classes: k >= 2; needed for "cross_entropy".
        k_a: K_a >= 0, bound on the norm of a batch of outputs; needed for "mse".
        target_norm: ‖y‖ >= 0, norm of a batch of targets; needed for "mse".
        weight_decay: lambda >= 0 of the penalty lambda/2 ‖w‖^2.
        weight_norm: K >= 0, bound on ‖w‖, for the penalty.
        supremum: False: the papers' form. True: a bound that holds at any output; the rate is
            smaller, by 2 sqrt(m) (binary) or sqrt(2 m) k / (k - 1).
        loss_scale: the loss that is trained, as a multiple of the papers', > 0; 2 for
            ``torch.nn.MSELoss`` on one output (2 / o on o outputs, over which it averages too). It
            does not multiply the penalties.
        tikhonov: ‖Gamma^T Gamma‖ >= 0 of a penalty ‖Gamma w‖^2: :func:`tikhonov_norm`.

    Returns:
        L > 0; a learning rate is 1 / L.

    Raises:
        ValueError: on an option outside its range, an argument missing for this loss, or L = 0.
        TypeError: on something that is no number.

    Example:
        >>> lipschitz_constant("cross_entropy", batch_size=2, k_z=5.0, classes=10)
        2.25
    """
    require_choice("loss", loss, LOSSES)
    m = require_at_least("batch_size", batch_size, 1)
    inputs = require_positive("k_z", k_z)
    decay = require_not_negative("weight_decay", weight_decay)
    norm = require_not_negative("weight_norm", weight_norm)
    scale = require_positive("loss_scale", loss_scale)
    penalty = decay * norm + 2 * norm * require_not_negative("tikhonov", tikhonov)
    if loss == "cross_entropy":
        k = require_at_least("classes", _given("classes", classes, loss), 2)
        residual = sqrt(2 * m) if supremum else (k - 1) / k
    elif loss == "binary_cross_entropy":
        residual = sqrt(m) if supremum else 0.5
    else:
        output = require_not_negative("k_a", _given("k_a", k_a, loss))
        target = require_not_negative("target_norm", _given("target_norm", target_norm, loss))
        residual = output + target if supremum else abs(output - target)
    return _positive_constant(scale * residual * inputs / m + penalty)


def tikhonov_norm(gamma: Any) -> float:
    """How steep is a Tikhonov penalty ‖Gamma w‖^2 per unit of ‖w‖? ‖Gamma^T Gamma‖ = ‖Gamma‖^2.

    The penalty's gradient 2 Gamma^T Gamma w is at most 2 K times this where ‖w‖ <= K ([L] 5.3),
    and just that where w is the leading right singular vector of Gamma, of length K.

    Two slips of [L] 5.3 are mended here. It writes ‖Gamma^2‖, which equals ‖Gamma^T Gamma‖ for a
    symmetric (or any normal) Gamma and is too small otherwise: [[0, 1], [0, 0]] squared is 0, the
    penalty w_2^2 is not. And the Gamma of an L2 penalty lambda/2 ‖w‖^2, with its lambda K, is
    sqrt(lambda / 2) I, not lambda/2 I.

    Args:
        gamma: a number g (for g times the identity), a vector (the diagonal), or a matrix of shape
            (rows, weights); array or tensor. A matrix may act on all weights, or on those of each
            output alike.

    Returns:
        Squared spectral norm, at least 0; for ``tikhonov`` of :func:`lipschitz_constant`.

    Raises:
        ValueError: if it is empty or not finite, or has more than two dimensions.
        TypeError: if it is no real numbers.

    Example:
        >>> tikhonov_norm([[0.0, 1.0], [0.0, 0.0]])
        1.0
    """
    values = gamma if hasattr(gamma, "detach") else np.asarray(gamma)
    dimensions = len(values.shape)
    if dimensions > 2:
        raise InvalidArgumentError(
            f"gamma must be a number, a vector or a matrix, got shape {tuple(values.shape)}"
        )
    matrix = _matrix("gamma", values if dimensions == 2 else values.reshape(-1, 1))
    norm = float(np.linalg.norm(matrix, 2) if dimensions == 2 else np.abs(matrix).max())
    return norm * norm


def regression_weight_bound(X: Any) -> float:
    """How large may the weights of a linear regression become? A guess before training.

    K = (a + b) / 2 with a = (1/m) sum of all entries of X and b = the mean over columns of the
    column's largest entry ([L] 7.1, where it was found by trial).

    Args:
        X: array or tensor of shape (samples m, features n). Meant for non-negative data; the
            papers scale each feature to sum to 1.

    Returns:
        K > 0, in units of X.

    Raises:
        ValueError: on empty or non-finite data, or where the formula gives no positive number
            (data that are mostly negative).
        TypeError: on something that is no array of real numbers.

    Example:
        >>> import numpy as np
        >>> regression_weight_bound(np.array([[0.0, 1.0], [2.0, 3.0]]))  # a = 3, b = 2.5
        2.75
    """
    data = _matrix("X", X)
    a = data.sum() / len(data)
    b = data.max(axis=0).mean()
    bound = float(a + b) / 2
    if not bound > 0:
        raise InvalidArgumentError(
            f"X must give a positive weight bound, got {bound:.3g}; scale the features to be "
            f"non-negative, or pass weight_norm yourself"
        )
    return bound


def linear_regression_lipschitz(
    X: Any, y: Any, *, weight_norm: float | None = None, supremum: bool = False
) -> float:
    """How steep is the least-squares loss of a linear model, over weights no longer than K?

    L = |K/m ‖X^T X‖ - ‖y^T X‖ / m|, spectral norms ([L] 4.1), for the loss
    1/(2m) sum (x w - y)^2. :func:`lipschitz_constant` with K_z = ‖X‖ and K_a = K ‖X‖ has ‖y‖ ‖X‖ in
    place of ‖y^T X‖, which is the same only where y is a leading left singular vector of X; [L] 4.3
    takes the two for equal. Of the two suprema, this one is the lower.

    Args:
        X: shape (samples m, features n).
        y: shape (m,) or (m, outputs).
        weight_norm: K > 0, bound on ‖w‖; None takes :func:`regression_weight_bound`.
        supremum: True adds the two terms (triangle inequality) instead of subtracting them: a
            bound on the gradient for every w with ‖w‖ <= K (Frobenius norms for several outputs),
            attained if X^T y is a leading eigenvector of X^T X. The difference is exceeded already
            at w = 0 wherever K ‖X^T X‖ < 2 ‖y^T X‖.

    Returns:
        L > 0; a learning rate is 1 / L. The absolute value, since the difference is negative on
        the papers' own data (their feature scaling makes X^T X tiny), where their rates are
        positive: with the scaling of [L] 7.1 the second term is all that counts.

    Raises:
        ValueError: on data that are empty, not finite or of unequal length, or where L = 0.
        TypeError: on something that is no array of real numbers.

    Example:
        >>> import numpy as np
        >>> linear_regression_lipschitz(np.eye(2), np.array([0.0, 1.0]), weight_norm=3.0)
        1.0
    """
    data = _matrix("X", X)
    m = len(data)
    targets = _matrix("y", y)
    if len(targets) != m:
        raise InvalidArgumentError(f"y must have one row per row of X, got {len(targets)} and {m}")
    bound = (
        regression_weight_bound(data)
        if weight_norm is None
        else require_positive("weight_norm", weight_norm)
    )
    curvature = bound * float(np.linalg.norm(data, 2)) ** 2 / m
    # For several outputs the spectral norm bounds the gradient's spectral norm alone.
    pull = float(np.linalg.norm(targets.T @ data, "fro" if supremum else 2)) / m
    return _positive_constant(curvature + pull if supremum else abs(curvature - pull))


def _positive_constant(constant: float) -> float:
    if not constant > 0:
        raise InvalidArgumentError(
            "the Lipschitz constant vanishes for these arguments, so 1 / L is no learning rate; "
            "use supremum=True, or fall back on another bound"
        )
    return constant


def _given(name: str, value: float | None, loss: str) -> float:
    if value is None:
        raise InvalidArgumentError(f"{name} must be given for loss={loss!r}, got None")
    return value


def _matrix(name: str, array: Any) -> Matrix:
    """The array as float64 of shape (rows, columns), checked; a single column may come flat."""
    if len(getattr(array, "shape", ())) == 1 and name == "y":
        array = array.reshape(-1, 1)
    matrix = as_rows(array, name)
    if matrix.size == 0:
        raise InvalidArgumentError(f"{name} must not be empty, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise InvalidArgumentError(f"{name} must be finite, got NaN or infinity")
    return matrix
