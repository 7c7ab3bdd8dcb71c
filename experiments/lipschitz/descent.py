"""Full-batch gradient descent of linear models, many runs side by side.

An epoch is a step. As in the notebooks of [L], epoch e looks at the loss of the weights before its
step, so that epoch 1 sees the initial weights, and a loss that is below a threshold after one step
takes two epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, nan
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lrsearch.errors import InvalidArgumentError

Floats = NDArray[np.float64]

# What the orders of log(1 + exp(z)) beyond the second may add to a loss, and to a gradient.
LOSS_ERROR = 1e-14
GRADIENT_ERROR = 1e-9


@dataclass(frozen=True, slots=True)
class Quadratic:
    """A loss w -> level - pull.w + w.(curvature w)/2, whose descent has a closed form.

    Attributes:
        level: the loss at zero weights.
        pull: minus its gradient there, shape (n,).
        curvature: shape (n, n), positive semi-definite.
    """

    level: float
    pull: Floats
    curvature: Floats

    def loss(self, weights: Floats) -> Floats:
        """Losses, shape (runs,), of weights of shape (n, runs)."""
        return self.level + np.sum(
            weights * (0.5 * self.curvature @ weights - self.pull[:, None]), 0
        )


def least_squares(inputs: Floats, targets: Floats) -> Quadratic:
    """1/(2m) sum (x.w - y)^2, [L] 4.1: from the Gram matrix, so that a step costs n^2.

    Args:
        inputs: shape (m, n).
        targets: shape (m,).
    """
    m = len(inputs)
    return Quadratic(
        float(targets @ targets) / (2 * m), inputs.T @ targets / m, inputs.T @ inputs / m
    )


def logistic_near_zero(inputs: Floats, targets: Floats) -> Quadratic:
    """The mean binary cross-entropy to second order: exact to rounding where outputs are tiny.

    Args:
        inputs: shape (m, n).
        targets: 0 or 1, shape (m,).
    """
    m = len(inputs)
    return Quadratic(log(2.0), inputs.T @ (targets - 0.5) / m, inputs.T @ inputs / (4 * m))


class Path:
    """The gradient descent of a quadratic loss, at any step.

    Along each eigenvector of the curvature the gradient shrinks by 1 - rate x eigenvalue a step.

    Args:
        loss: what descends.
        weights: initial ones, shape (n, runs).
        rate: > 0; times the largest eigenvalue below 1, so that every step falls, none overshoots.

    Raises:
        InvalidArgumentError: if the rate is outside that range.
    """

    def __init__(self, loss: Quadratic, weights: Floats, rate: float) -> None:
        eigenvalues, vectors = np.linalg.eigh(loss.curvature)
        # Rounding leaves tiny negative ones where there is no curvature.
        self._eigenvalues = np.maximum(eigenvalues, 0.0)
        largest = float(self._eigenvalues[-1])
        if not rate > 0.0 or not rate * largest < 1.0:
            raise InvalidArgumentError(
                f"rate must be positive and below {1.0 / largest:.3g}, got {rate:.3g}"
            )
        self._rate, self._vectors = rate, vectors
        self._first = loss.loss(weights)
        self._gradient = vectors.T @ (loss.curvature @ weights - loss.pull[:, None])

    def losses(self, steps: int) -> Floats:
        """After so many steps, shape (runs,)."""
        return self._first - 0.5 * self._taken(2 * steps) @ self._gradient**2

    def moved(self, steps: int) -> Floats:
        """How far the weights are from the initial ones after so many steps, shape (n, runs)."""
        return -self._vectors @ (self._taken(steps)[:, None] * self._gradient)

    def epochs_to(self, threshold: float, *, most: int) -> Floats:
        """The epoch in which the loss is first seen below the threshold, shape (runs,).

        Args:
            threshold: of the loss.
            most: epochs to look at; NaN stands for what is not reached in them.
        """
        return np.array([self._epoch(run, threshold, most) for run in range(len(self._first))])

    def _epoch(self, run: int, threshold: float, most: int) -> float:
        low, high = 0, most - 1
        if not self.losses(high)[run] < threshold:
            return nan
        while low < high:  # the loss falls at every step
            middle = (low + high) // 2
            if self.losses(middle)[run] < threshold:
                high = middle
            else:
                low = middle + 1
        return high + 1.0

    def _taken(self, steps: int) -> Floats:
        """(1 - shrink^steps) / eigenvalue, along each eigenvector; its limit where that is 0."""
        shrink = self._rate * self._eigenvalues
        flat = shrink * steps < 1e-12
        fallen = -np.expm1(steps * np.log1p(-shrink))
        return np.where(flat, self._rate * steps, fallen / np.where(flat, 1.0, self._eigenvalues))


class Model(Protocol):
    """A loss that is iterated."""

    def look(self, weights: Floats) -> tuple[Floats, Floats]:
        """Losses, shape (runs,), and gradients, shaped as the weights, (n, runs, ...)."""


@dataclass(frozen=True, slots=True)
class Logistic:
    """The mean binary cross-entropy of a logistic regression, [L] 5.1.

    Attributes:
        inputs: shape (m, n).
        targets: 0 or 1, shape (m,).
    """

    inputs: Floats
    targets: Floats

    def look(self, weights: Floats) -> tuple[Floats, Floats]:
        """Losses and gradients of weights of shape (n, runs)."""
        outputs = self.inputs @ weights
        decayed = np.exp(-np.abs(outputs))
        losses = np.maximum(outputs, 0.0) + np.log1p(decayed) - self.targets[:, None] * outputs
        chance = np.where(outputs >= 0.0, 1.0, decayed) / (1.0 + decayed)
        gradient = self.inputs.T @ (chance - self.targets[:, None]) / len(self.inputs)
        return losses.mean(axis=0), gradient

    def accuracy(self, weights: Floats) -> Floats:
        """Percent of rows whose output is on the side of their class, shape (runs,)."""
        return percent((self.inputs @ weights >= 0.0) == (self.targets[:, None] > 0.5))


@dataclass(frozen=True, slots=True)
class Softmax:
    """The mean cross-entropy of a softmax regression without a bias, [L] 5.2.

    Attributes:
        inputs: shape (m, n).
        targets: class indices, shape (m,).
        classes: k.
    """

    inputs: Floats
    targets: NDArray[np.int_]
    classes: int

    def look(self, weights: Floats) -> tuple[Floats, Floats]:
        """Losses and gradients of weights of shape (n, runs, k)."""
        outputs = self._outputs(weights)
        outputs -= outputs.max(axis=2, keepdims=True)
        rows = np.arange(len(outputs))
        chosen = outputs[rows, :, self.targets]
        chance = np.exp(outputs)
        sums = chance.sum(axis=2, keepdims=True)
        losses = np.log(sums[..., 0]) - chosen
        chance /= sums
        chance[rows, :, self.targets] -= 1.0
        gradient = self.inputs.T @ chance.reshape(len(rows), -1) / len(rows)
        return losses.mean(axis=0), gradient.reshape(weights.shape)

    def accuracy(self, weights: Floats) -> Floats:
        """Percent of rows whose largest output is their class, shape (runs,)."""
        return percent(self._outputs(weights).argmax(axis=2) == self.targets[:, None])

    def _outputs(self, weights: Floats) -> Floats:
        flat = weights.reshape(len(weights), -1)
        return (self.inputs @ flat).reshape(len(self.inputs), -1, self.classes)


def percent(right: NDArray[np.bool_]) -> Floats:
    """Percent of rows that are right, shape (runs,), of shape (rows, runs)."""
    return np.round(100.0 * right.mean(axis=0), 4)


def epochs_to(model: Model, weights: Floats, rate: float, threshold: float, *, most: int) -> Floats:
    """The epoch in which the loss is first seen below a threshold, shape (runs,).

    Args:
        model: what descends.
        weights: initial ones, shape (n, runs, ...).
        rate: of all runs.
        threshold: of the loss.
        most: epochs to look at; NaN stands for what is not reached in them.
    """
    seen = np.full(weights.shape[1], np.nan)
    for epoch in range(1, most + 1):
        losses, gradient = model.look(weights)
        seen[np.isnan(seen) & (losses < threshold)] = epoch
        if not np.isnan(seen).any():
            break
        weights = weights - rate * gradient
    return seen


def trace(
    model: Model,
    weights: Floats,
    rate: float,
    *,
    epochs: int,
    every: int,
    stops: Sequence[int] = (),
) -> tuple[Floats, dict[int, Floats]]:
    """Losses on the way, and the weights after some epochs.

    Args:
        model, weights, rate: as for ``epochs_to``.
        epochs: steps to take.
        every: a loss is kept before the first step and each so many further ones.
        stops: numbers of steps after which the weights are wanted.

    Returns:
        Losses, shape (runs, epochs // every + 1), and weights by number of steps.
    """
    kept, at = [], {}
    for step in range(epochs + 1):
        if step in stops:
            at[step] = weights
        losses, gradient = model.look(weights)
        if step % every == 0:
            kept.append(losses)
        weights = weights - rate * gradient
    return np.stack(kept, axis=1), at


def logistic_epochs_to(
    model: Logistic, weights: Floats, rate: float, threshold: float, *, most: int, far: int
) -> Floats:
    """As ``epochs_to``, in closed form where all outputs stay near zero.

    Args:
        model, weights, rate, threshold: as for ``epochs_to``.
        most: epochs to look at where steps are taken one by one.
        far: the same where they are not.
    """
    quadratic = logistic_near_zero(model.inputs, model.targets)
    if rate * np.linalg.eigvalsh(quadratic.curvature)[-1] < 1.0:
        path = Path(quadratic, weights, rate)
        epochs = path.epochs_to(threshold, most=far)
        last = int(np.nan_to_num(epochs, nan=far).max())
        # Along each eigenvector the weights move one way, so they are never further than this.
        furthest = np.linalg.norm(weights, axis=0) + np.linalg.norm(path.moved(last), axis=0)
        if _is_near_zero(model.inputs, float(furthest.max()), quadratic):
            return epochs
    return epochs_to(model, weights, rate, threshold, most=most)


def _is_near_zero(inputs: Floats, furthest: float, quadratic: Quadratic) -> bool:
    """Whether weights no longer than ``furthest`` leave the second order all that counts.

    An output z is at most |x| |w|; what is left out is z^4 / 192 of a loss, z^3 / 48 of its slope.
    """
    fourth = float(np.mean(np.sum(inputs**2, axis=1) ** 2))
    tolerated = GRADIENT_ERROR * float(np.linalg.norm(quadratic.pull))
    return fourth * furthest**4 / 192 <= LOSS_ERROR and fourth * furthest**3 / 48 <= tolerated
