"""The largest eigenvalue of a matrix that is only known by what it does to a block of vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lrsearch.bounds.blocks import Matrix

BLOCK_SIZE = 4
"""Vectors multiplied in one pass: a pass over the data costs about the same for four as for one."""

MAX_BASIS = 64
"""Basis vectors kept before the search restarts from its best ones."""

KEPT = 16
"""Ritz vectors that survive a restart."""

MAX_PASSES = 200
"""Multiplications after which the best value so far is handed back, with its residual."""


@dataclass(frozen=True, slots=True)
class RitzPair:
    """The largest Ritz value and how well it is known.

    Attributes:
        value: the Rayleigh quotient; never above the largest eigenvalue.
        residual: ``||A v - value v||`` of the unit Ritz vector v; some eigenvalue lies within it.
        passes: multiplications spent.
    """

    value: float
    residual: float
    passes: int


def largest_eigenvalue(
    multiply: Callable[[Matrix], Matrix], size: int, *, tolerance: float = 1e-6
) -> RitzPair:
    """What is the largest eigenvalue of a symmetric positive semi-definite matrix A?

    Block Lanczos with full reorthogonalisation and restarts (Golub & Van Loan, Matrix
    Computations, 4th ed., 10.3.6): the basis grows by the orthonormal part of the residuals
    ``A y - theta y`` of the best Ritz pairs, so each pass adds ``BLOCK_SIZE`` directions. The
    error of the value is of the order of residual^2 / gap. The start is fixed, so equal matrices
    give equal values.

    Args:
        multiply: maps V of shape (size, k) to A V of the same shape.
        size: rows of A, at least 1.
        tolerance: stop when residual <= tolerance * value; relative, positive.

    Returns:
        The value, its residual and the passes. After ``MAX_PASSES`` the residual may still be
        above the tolerance: that is for the caller to judge.

    Example:
        >>> import numpy as np
        >>> pair = largest_eigenvalue(lambda V: np.array([[3.0], [1.0]]) * V, 2)
        >>> round(pair.value, 12)
        3.0
    """
    width = min(BLOCK_SIZE, size)
    fresh = np.linalg.qr(np.random.default_rng(0).standard_normal((size, width)))[0]
    basis, image = np.empty((size, 0)), np.empty((size, 0))
    for passes in range(1, MAX_PASSES + 1):
        basis = np.hstack([basis, fresh])
        image = np.hstack([image, multiply(fresh)])
        projected = basis.T @ image
        values, vectors = np.linalg.eigh((projected + projected.T) / 2)
        best = vectors[:, ::-1][:, :width]
        ritz, ritz_image = basis @ best, image @ best
        residuals = ritz_image - ritz * values[::-1][:width]
        pair = RitzPair(float(values[-1]), float(np.linalg.norm(residuals[:, 0])), passes)
        if pair.residual <= tolerance * abs(pair.value) or basis.shape[1] >= size:
            break
        if basis.shape[1] + width > MAX_BASIS:
            kept = vectors[:, ::-1][:, :KEPT]
            basis, image = basis @ kept, image @ kept
        fresh = _new_directions(residuals, basis)
        if fresh.shape[1] == 0:
            break
    return pair


def _new_directions(residuals: Matrix, basis: Matrix) -> Matrix:
    """Orthonormal part of the residuals outside the basis; projected twice against rounding."""
    scale = np.linalg.norm(residuals, axis=0)
    fresh: Matrix = residuals[:, scale > 0] / scale[scale > 0]
    for _ in range(2):
        fresh = fresh - basis @ (basis.T @ fresh)
        left, singular, _ = np.linalg.svd(fresh, full_matrices=False)
        fresh = left[:, singular > 1e-8]
    # At most as many as there are directions left.
    return fresh[:, : basis.shape[0] - basis.shape[1]]
