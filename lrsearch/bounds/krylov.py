"""The largest eigenvalue of a symmetric matrix that is only known by what it does to vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrsearch.bounds.blocks import Matrix
from lrsearch.errors import InvalidArgumentError, require_at_least, require_positive

BLOCK_SIZE = 4
"""Vectors multiplied in one pass: a pass over the data costs about the same for four as for one."""

MAX_BASIS = 64
"""Basis vectors kept before the search restarts from its best ones."""

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


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """Where the long vectors live. The search itself only ever sees small matrices on the host.

    Long matrices need slicing of columns, ``.T``, ``@``, ``-`` and assignment to columns: numpy
    arrays have these, and so do the tensors of another room.

    Attributes:
        empty: (rows, columns) -> an uninitialised long matrix.
        lift: a host matrix -> the same numbers where the long matrices live.
        fetch: a small matrix from there -> float64 on the host.
        rounding: relative error of its arithmetic.
    """

    empty: Callable[[int, int], Any]
    lift: Callable[[Matrix], Any]
    fetch: Callable[[Any], Matrix]
    rounding: float


HOST = VectorSpace(
    empty=lambda rows, columns: np.empty((rows, columns), order="F"),
    lift=lambda matrix: matrix,
    fetch=lambda matrix: np.asarray(matrix),
    rounding=float(np.finfo(np.float64).eps),
)
"""Plain float64 arrays."""


def largest_eigenvalue(
    multiply: Callable[[Any], Any],
    size: int,
    *,
    tolerance: float = 1e-6,
    block_size: int = BLOCK_SIZE,
    max_basis: int = MAX_BASIS,
    max_passes: int = MAX_PASSES,
    seed: int = 0,
    noise: float = 0.0,
    space: VectorSpace = HOST,
) -> RitzPair:
    """What is the largest (most positive) eigenvalue of a symmetric matrix A, definite or not?

    Block Lanczos with full reorthogonalisation and restarts (Golub & Van Loan, Matrix
    Computations, 4th ed., 10.3.6; Wu & Simon, SIAM J. Matrix Anal. Appl. 22, 2000, for the
    restart): the basis grows by the orthonormal part of the residuals ``A y - theta y`` of the best
    Ritz pairs, so each pass adds ``block_size`` directions, and restarts from the best quarter
    when it is full. The error of the value is of the order of residual^2 / gap. The start depends
    on ``seed`` alone, so equal matrices give equal values.

    Args:
        multiply: maps V of shape (size, k), k <= block_size, to A V of the same shape; V may be
            overwritten by the search after the call.
        size: rows of A, at least 1.
        tolerance: stop when residual <= tolerance * |value|; relative, positive.
        block_size: k, at least 1: 1 where each vector costs a product of its own.
        max_basis: most basis vectors held, at least 2 k. Memory: 2 max_basis vectors and a few.
        max_passes: most multiplications, at least 1.
        seed: of the random start.
        noise: relative error of one multiplication, where it is above the space's rounding. No
            residual below it, times the largest eigenvalue in magnitude, can be told from 0.
        space: where the vectors live.

    Returns:
        The value, its residual and the passes. After ``max_passes`` the residual may still be
        above the tolerance: that is for the caller to judge. An eigenvalue that is tiny beside the
        largest in magnitude is known to rounding of the latter, not better.

    Raises:
        ValueError: if a count or the tolerance is out of range, or A V is not finite.

    Example:
        >>> import numpy as np
        >>> pair = largest_eigenvalue(lambda V: np.array([[3.0], [-9.0]]) * V, 2)
        >>> round(pair.value, 12)
        3.0
    """
    require_positive("tolerance", tolerance)
    width = min(require_at_least("block_size", block_size, 1), size)
    room = min(require_at_least("max_basis", max_basis, 2 * width), size)
    start = np.random.default_rng(seed).standard_normal((size, width))
    basis, image = space.empty(size, room), space.empty(size, room)
    projected = np.zeros((room, room))
    fresh = _orthonormal(space.lift(start), basis[:, :0], space)
    floor = max(noise, 8 * space.rounding)
    held, scale = 0, 0.0
    for passes in range(1, require_at_least("max_passes", max_passes, 1) + 1):
        new = slice(held, held + fresh.shape[1])
        held = new.stop
        basis[:, new] = fresh
        image[:, new] = multiply(fresh)
        corner = space.fetch(basis[:, :held].T @ image[:, new])
        if not np.isfinite(corner).all():
            raise InvalidArgumentError(
                "multiply must give finite numbers, got NaN or infinity; rescale the problem"
            )
        projected[:held, new] = corner
        projected[new, :held] = corner.T
        inner = projected[new, new]
        projected[new, new] = (inner + inner.T) / 2
        values, vectors = np.linalg.eigh(projected[:held, :held])
        scale = max(scale, float(np.abs(values).max()))
        unit = scale or 1.0  # squares of residuals in this unit neither overflow nor vanish
        best = vectors[:, ::-1][:, :width] / unit
        residuals = image[:, :held] @ space.lift(best)
        residuals = residuals - basis[:, :held] @ space.lift(best * values[::-1][:width])
        residual = unit * float(np.sqrt(_gram(residuals[:, :1], space)[0, 0]))
        pair = RitzPair(float(values[-1]), residual, passes)
        known = residual <= max(tolerance * abs(pair.value), floor * scale)
        if known or held >= size:
            break
        if held + width > room and room < size:
            kept = max(width, room // 4)
            ritz = space.lift(vectors[:, ::-1][:, :kept].copy())
            for long in (basis, image):
                long[:, :kept] = long[:, :held] @ ritz
            projected[:kept, :kept] = np.diag(values[::-1][:kept])
            held = kept
        fresh = _orthonormal(residuals, basis[:, :held], space)[:, : room - held]
        if fresh.shape[1] == 0:
            break
    return pair


def _orthonormal(columns: Any, basis: Any, space: VectorSpace) -> Any:
    """Orthonormal part of the columns outside the basis; done twice against rounding."""
    sizes = np.sqrt(np.diagonal(_gram(columns, space)))
    usable = np.flatnonzero(sizes > 0)
    mixing = np.zeros((len(sizes), len(usable)))
    mixing[usable, np.arange(len(usable))] = 1.0 / sizes[usable]
    fresh = columns @ space.lift(mixing)
    for _ in range(2):
        if fresh.shape[1] == 0:
            break
        fresh = fresh - basis @ (basis.T @ fresh)
        # From k x k numbers alone, so that the long vectors stay where they are.
        squares, rotation = np.linalg.eigh(_gram(fresh, space))
        clear = squares > 512 * space.rounding
        fresh = fresh @ space.lift(rotation[:, clear] / np.sqrt(squares[clear]))
    return fresh


def _gram(columns: Any, space: VectorSpace) -> Matrix:
    """Inner products of a few long vectors, on the host; never below 0 on the diagonal."""
    products = space.fetch(columns.T @ columns)
    symmetric: Matrix = (products + products.T) / 2
    return symmetric
