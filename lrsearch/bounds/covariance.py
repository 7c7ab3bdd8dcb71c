"""Upper bounds on the learning rate from the inputs alone.

The bounds are those of ExpTest ([E], arXiv 2411.16975): Eq. 15, Eq. 16, Eq. 38 and Appendix C. All
rest on lambda_max, the largest eigenvalue of the covariance of the inputs. Up to ``DENSE_FEATURES``
features it comes from the covariance matrix itself, built in one pass; beyond that no matrix is
built, and a block Lanczos search passes over the data a few times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from lrsearch.bounds.blocks import CACHED_ELEMENTS, Blocks, Matrix
from lrsearch.bounds.krylov import largest_eigenvalue
from lrsearch.bounds.losses import LOSSES
from lrsearch.errors import (
    InvalidArgumentError,
    require_at_least,
    require_choice,
    require_positive,
)

Vector: TypeAlias = NDArray[np.float64]

DENSE_FEATURES: Final = 1024
"""Widest data whose covariance matrix is built (8 MB at most)."""


@dataclass(frozen=True, slots=True)
class LargestEigenvalue:
    """The largest eigenvalue of a covariance, with what it was computed from.

    Attributes:
        value: lambda_max, in squared units of the inputs (no unit when standardised).
        residual: ``||C v - value v||`` of the unit eigenvector v: an eigenvalue lies within it.
        samples: rows seen, s.
        features: columns seen, n; the bias column is not counted.
        method: "dense" (from the matrix) or "lanczos" (matrix-free).
        passes: walks over the data.
    """

    value: float
    residual: float
    samples: int
    features: int
    method: Literal["dense", "lanczos"]
    passes: int


@dataclass(slots=True)
class _Moments:
    """Centred sums of what has been seen, merged block by block (Chan, Golub & LeVeque 1979).

    ``squares`` is the sum of squared deviations, shape (features,), or, where the whole matrix is
    wanted, that of their products, shape (features, features).
    """

    samples: int
    mean: Vector
    squares: NDArray[np.float64]
    low: Vector
    high: Vector

    @property
    def sum_of_squares(self) -> Vector:
        """Sum of squared deviations of each feature, shape (features,)."""
        return self.squares if self.squares.ndim == 1 else np.diagonal(self.squares)

    def merge(self, block: Matrix) -> None:
        """Take in one more block."""
        rows = len(block)
        total = self.samples + rows
        mean = block.mean(axis=0)
        shift = mean - self.mean
        centred = block - mean
        weight = self.samples * rows / total
        if self.squares.ndim == 1:
            self.squares += np.einsum("ij,ij->j", centred, centred) + weight * shift**2
        else:
            self.squares += centred.T @ centred
            self.squares += np.multiply.outer(weight * shift, shift)
        self.mean += shift * (rows / total)
        np.minimum(self.low, block.min(axis=0), out=self.low)
        np.maximum(self.high, block.max(axis=0), out=self.high)
        self.samples = total

    def inverse_scale(self) -> Vector:
        """1 / standard deviation (divisor s, as scalers have it); 0 for a constant feature."""
        reach = np.maximum(np.abs(self.low), np.abs(self.high))
        # Judged by the range: the variance of a constant 0.1 is rounding noise, not 0.
        varies = self.high - self.low > 8 * np.finfo(np.float64).eps * reach
        deviation = np.sqrt(self.sum_of_squares / self.samples)
        varies &= deviation > 0
        return np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)


def _measure(blocks: Blocks, *, matrix: bool) -> _Moments:
    """One pass: means, centred sums and ranges; the matrix too, where asked and narrow enough."""
    moments: _Moments | None = None
    for block in blocks:
        if not np.isfinite(block).all():
            raise InvalidArgumentError(
                "inputs must be finite, got NaN or infinity; drop or fill those samples"
            )
        if moments is None:
            n = block.shape[1]
            shape = (n, n) if matrix and n <= DENSE_FEATURES else (n,)
            moments = _Moments(
                0, np.zeros(n), np.zeros(shape), np.full(n, np.inf), np.full(n, -np.inf)
            )
        with np.errstate(over="ignore", invalid="ignore"):
            moments.merge(block)
    if moments is None or moments.samples < 2:
        seen = 0 if moments is None else moments.samples
        raise InvalidArgumentError(
            f"inputs must hold at least two samples for a covariance, got {seen}"
        )
    if not np.isfinite(moments.sum_of_squares).all():
        raise InvalidArgumentError(
            "inputs must be small enough to be squared in float64, got values above 1e150; "
            "scale them first"
        )
    return moments


def covariance_spectrum(
    inputs: object, *, standardize: bool = True, bias: bool = False, tolerance: float = 1e-6
) -> LargestEigenvalue:
    """What is the largest eigenvalue of the covariance of the inputs, and how well is it known?

    With X of shape (samples s, features n), one row per sample, C = X^T X / (s - 1) ([E] Eq. 13).

    Args:
        inputs: array or tensor of shape (samples, ...); a map-style Dataset, or an iterable of
            batches (a DataLoader), whose items may be (input, target) pairs; everything is
            flattened to (samples, features) and read block by block in float64. Each walk must
            give the same samples, in any order: switch random augmentation and ``drop_last`` off.
            A one-shot generator is kept in memory.
        standardize: True: each feature is brought to mean 0 and mean square 1 first, as numpy's
            ``std`` and scikit-learn's ``StandardScaler`` do (divisor s; C's divisor stays s - 1),
            and constant features stay 0. False: X as it is, not centred, so that C is the second
            moment of the data that are actually trained on.
        bias: True appends a constant column of ones (never standardised), which is what the bias
            of a linear layer sees.
        tolerance: residual allowed, relative to the value; the value itself is far closer, by
            residual^2 / gap. Used beyond ``DENSE_FEATURES`` features only.

    Returns:
        Value, residual, sizes and method. The value is 0 where every feature is constant. A search
        that ran out of passes shows in ``residual``.

    Raises:
        ValueError: on no or one sample, NaN or infinity, fewer than two dimensions, features that
            differ between batches, or samples that differ between walks.
        TypeError: if ``inputs`` is of another kind, or does not hold real numbers.

    Accuracy: means and deviations are merged as centred sums, and blocks are centred before they
    are multiplied, so a large offset costs no digits. Memory: a few blocks of 16 MB, and for wide
    data n x 170 numbers; never n x n beyond ``DENSE_FEATURES``.

    Example:
        >>> import numpy as np
        >>> spectrum = covariance_spectrum(np.array([[0.0, 0.0], [1.0, 2.0]]), standardize=False)
        >>> round(spectrum.value, 12), spectrum.samples, spectrum.method
        (5.0, 2, 'dense')
    """
    require_positive("tolerance", tolerance)
    blocks = Blocks(inputs)
    moments = _measure(blocks, matrix=True)
    if moments.squares.ndim == 2:
        return _dense(moments, standardize=standardize, bias=bias)
    return _matrix_free(blocks, moments, standardize=standardize, bias=bias, tolerance=tolerance)


def _dense(moments: _Moments, *, standardize: bool, bias: bool) -> LargestEigenvalue:
    """From the matrix: exact up to rounding, one pass."""
    samples, n = moments.samples, len(moments.mean)
    scatter = np.zeros((n + 1, n + 1)) if bias else np.zeros((n, n))
    if standardize:
        scale = moments.inverse_scale()
        scatter[:n, :n] = scale[:, None] * moments.squares * scale
    else:
        mean = moments.mean
        scatter[:n, :n] = moments.squares + samples * np.multiply.outer(mean, mean)
        if bias:
            scatter[n, :n] = scatter[:n, n] = samples * mean
    if bias:
        scatter[n, n] = samples
    covariance = scatter / (samples - 1)
    top = len(covariance) - 1
    values, vectors = eigh(covariance, subset_by_index=(top, top))
    value, vector = max(0.0, float(values[0])), vectors[:, 0]
    residual = float(np.linalg.norm(covariance @ vector - value * vector))
    return LargestEigenvalue(value, residual, samples, n, "dense", 1)


def _matrix_free(
    blocks: Blocks, moments: _Moments, *, standardize: bool, bias: bool, tolerance: float
) -> LargestEigenvalue:
    """By multiplying alone: Z^T (Z V) / (s - 1) over the blocks Z of the data as asked for."""
    samples, n = moments.samples, len(moments.mean)
    centre = moments.mean if standardize else np.zeros(n)
    scale = moments.inverse_scale() if standardize else np.ones(n)

    def multiply(vectors: Matrix) -> Matrix:
        weights = scale[:, None] * vectors[:n]
        image = np.zeros_like(vectors)
        for block in blocks.walk(CACHED_ELEMENTS):
            rows = block - centre
            scores = rows @ weights
            if bias:
                scores += vectors[n]
                image[n] += scores.sum(axis=0)
            image[:n] += rows.T @ scores
        image[:n] *= scale[:, None]
        return image / (samples - 1)

    pair = largest_eigenvalue(multiply, n + bias, tolerance=tolerance)
    return LargestEigenvalue(
        max(0.0, pair.value), pair.residual, samples, n, "lanczos", 1 + pair.passes
    )


def largest_covariance_eigenvalue(
    inputs: object, *, standardize: bool = True, bias: bool = False, tolerance: float = 1e-6
) -> float:
    """Lambda_max of the inputs: the ``value`` of :func:`covariance_spectrum`, which see.

    Example:
        >>> import numpy as np
        >>> round(largest_covariance_eigenvalue(np.array([[0.0, 0.0], [1.0, 2.0]])), 12)
        4.0
    """
    return covariance_spectrum(
        inputs, standardize=standardize, bias=bias, tolerance=tolerance
    ).value


def max_learning_rate(
    inputs: object,
    *,
    loss: str = "cross_entropy",
    outputs: int = 1,
    full_batch: bool = False,
    eigenvalue: bool = True,
    loss_scale: float = 1.0,
    standardize: bool = True,
    bias: bool = False,
    tolerance: float = 1e-6,
) -> float:
    """Above which learning rate does gradient descent on a linear model of these inputs diverge?

    With s samples, n features, m outputs and lambda_max of C = X^T X / (s - 1) ([E] II.A, II.B,
    App. C):

    ====================  ==========================  =========================
    loss                  ``eigenvalue=True``         ``eigenvalue=False``
    ====================  ==========================  =========================
    mse, full batch       2 m s / (lambda_max (s-1))  2 m s / (n (s-1))
                          Eq. 16                      Eq. 15
    mse, mini-batch       2 m / lambda_max, Eq. 38    2 m / n
    both cross-entropies  2 / lambda_max, App. C      2 / n
    ====================  ==========================  =========================

    Args:
        inputs: as for :func:`covariance_spectrum`.
        loss: "mse", "cross_entropy" or "binary_cross_entropy".
        outputs: m, the width of the model's output, at least 1; used by "mse" alone.
        full_batch: True for gradient descent on all samples at once. App. C has no factor
            s / (s - 1), so the cross-entropies do not use it.
        eigenvalue: False replaces lambda_max by n, the sum of all eigenvalues of standardised
            inputs as [E] has it (+ 1 with ``bias``), or by the measured sum with
            ``standardize=False``. One pass; a lower rate, unless all features are copies of one.
        loss_scale: the loss that is trained, as a multiple of the papers'; the bound is divided by
            it. The papers' MSE is 1/(2m) sum over outputs, mean over samples: ``torch.nn.MSELoss``
            (no 1/2) is 2.0 times that. Their cross-entropy, and torch's, is the mean over samples:
            1.0. A sum over a batch of B rows is B times the mean.
        standardize: False bounds the rate for the inputs as they are.
        bias: True counts the bias column.
        tolerance: as for :func:`covariance_spectrum`.

    Returns:
        The bound in units of the learning rate of plain SGD. For a linear model with "mse", full
        batch, it is sharp: descent converges below it and diverges above it, if the inputs are
        those that are trained on. For cross-entropy it is a start for a search, not a supremum
        (the logit Hessian is at most 1/2, so twice the bound is still stable), and for Adam-like
        optimizers it means nothing.

    Raises:
        ValueError: on an option that is not allowed, all features constant, or bad inputs.
        TypeError: on inputs of the wrong kind.

    Example:
        >>> import numpy as np
        >>> X = np.array([[-1.0], [0.0], [1.0]])  # lambda_max = 3 / (3 - 1)
        >>> round(max_learning_rate(X, loss="mse", full_batch=True), 12)  # 2 * 3 / (1.5 * 2)
        2.0
        >>> round(max_learning_rate(X, loss="mse", full_batch=True, loss_scale=2.0), 12)
        1.0
    """
    # Before the data are read: that may take a while.
    _check_loss(loss, outputs, loss_scale)
    if eigenvalue:
        spectrum = covariance_spectrum(
            inputs, standardize=standardize, bias=bias, tolerance=tolerance
        )
        curvature, samples = spectrum.value, spectrum.samples
    else:
        curvature, samples = _sum_of_eigenvalues(inputs, standardize=standardize, bias=bias)
    return bound_from_eigenvalue(
        curvature,
        samples,
        loss=loss,
        outputs=outputs,
        full_batch=full_batch,
        loss_scale=loss_scale,
    )


def bound_from_eigenvalue(
    eigenvalue: float,
    samples: int,
    *,
    loss: str = "cross_entropy",
    outputs: int = 1,
    full_batch: bool = False,
    loss_scale: float = 1.0,
) -> float:
    """The bound of :func:`max_learning_rate` where lambda_max is known already.

    Args:
        eigenvalue: lambda_max > 0, or n for Eq. 15.
        samples: s, at least 2.
        loss: as for :func:`max_learning_rate`, like the rest.
        outputs: m.
        full_batch: Eq. 15 and 16 instead of Eq. 38.
        loss_scale: the trained loss as a multiple of the papers'.

    Raises:
        ValueError: on an option that is not allowed, or an eigenvalue that is not positive.

    Example:
        >>> bound_from_eigenvalue(40.0, 60000)
        0.05
    """
    _check_loss(loss, outputs, loss_scale)
    s = require_at_least("samples", samples, 2)
    if not 0 < eigenvalue < float("inf"):
        raise InvalidArgumentError(
            f"inputs must vary: the largest eigenvalue must be positive, got {eigenvalue!r} "
            f"(of constant features only, any learning rate is stable)"
        )
    rate = 2.0 / (eigenvalue * loss_scale)
    if loss == "mse":
        rate *= outputs
        if full_batch:
            rate *= s / (s - 1)
    return rate


def _check_loss(loss: str, outputs: int, loss_scale: float) -> None:
    require_choice("loss", loss, LOSSES)
    require_at_least("outputs", outputs, 1)
    require_positive("loss_scale", loss_scale)


def _sum_of_eigenvalues(inputs: object, *, standardize: bool, bias: bool) -> tuple[float, int]:
    """The trace of C, and s. For standardised features n, as Eq. 15 has it for large s."""
    moments = _measure(Blocks(inputs), matrix=False)
    samples, n = moments.samples, len(moments.mean)
    if standardize:
        trace = (float(n) if moments.inverse_scale().any() else 0.0) + bias
    else:
        squares = moments.sum_of_squares + samples * moments.mean**2
        trace = (float(squares.sum()) + samples * bias) / (samples - 1)
    return trace, samples


def mean_absolute_sum(inputs: object, *, bias: bool = True) -> float:
    """How far does one step of a sign-like optimizer move the outputs, per unit of rate?

    E ||x||_1, the mean over samples of the sum of absolute inputs, the bias column (1) included.
    A step of Adam or sign descent moves each weight by about the learning rate, thus an output by
    at most rate * ||x||_1: a heuristic ceiling is rate <= 2 / E ||x||_1.

    Args:
        inputs: as for :func:`covariance_spectrum`, scaled as they are trained on; one sample will
            do.
        bias: False leaves the constant column out.

    Returns:
        The mean, in units of the inputs; 0 if all inputs are 0 and there is no bias.

    Raises:
        ValueError: on no samples, or NaN or infinity.
        TypeError: on inputs of the wrong kind.

    Example:
        >>> import numpy as np
        >>> mean_absolute_sum(np.array([[1.0, -2.0], [3.0, 0.0]]))
        4.0
    """
    total, samples = 0.0, 0
    for block in Blocks(inputs):
        total += float(np.abs(block).sum())
        samples += len(block)
    if not np.isfinite(total):
        raise InvalidArgumentError(
            "inputs must be finite, got NaN or infinity; drop or fill those samples"
        )
    return total / samples + (1.0 if bias else 0.0)
