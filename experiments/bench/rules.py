"""torch's update rules on stacked weights, with a rate for each run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from lrsearch.errors import require_choice
from lrsearch.training.loop import MOMENTUM
from lrsearch.training.task import OPTIMIZERS

_BETAS: Final = (0.9, 0.999)
_EPS: Final = 1e-8
_DECOUPLED: Final = 0.01  # AdamW's weight decay
_SMOOTHING: Final = 0.99  # RMSprop's


class Rule(Protocol):
    """An optimizer of stacked weights."""

    def step(self, gradients: Sequence[Tensor], rates: Tensor) -> None:
        """Update the weights in place.

        Args:
            gradients: each of shape (seeds, rates, ...).
            rates: shape (rates,).
        """


def make_rule(name: str, parameters: Sequence[Tensor]) -> Rule:
    """The rule of ``lrsearch.training.loop.make_optimizer`` of that name.

    Args:
        name: of the optimizer.
        parameters: weights of shape (seeds, rates, ...), updated in place.
    """
    require_choice("optimizer", name, OPTIMIZERS)
    if name in ("sgd", "momentum"):
        return _Descent(parameters, MOMENTUM if name == "momentum" else 0.0)
    if name == "rmsprop":
        return _Rmsprop(parameters)
    return _Adam(parameters, _DECOUPLED if name == "adamw" else 0.0)


def _spread(rates: Tensor, like: Tensor) -> Tensor:
    return rates.reshape(1, -1, *[1] * (like.ndim - 2))


class _Descent:
    def __init__(self, parameters: Sequence[Tensor], momentum: float) -> None:
        self._parameters, self._momentum = parameters, momentum
        self._velocity = [torch.zeros_like(each) for each in parameters] if momentum else []

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Tensor) -> None:
        moves = list(gradients)
        if self._momentum:
            torch._foreach_mul_(self._velocity, self._momentum)
            torch._foreach_add_(self._velocity, moves)
            moves = self._velocity
        for parameter, move in zip(self._parameters, moves, strict=True):
            parameter.addcmul_(move, _spread(rates, move), value=-1.0)


class _Rmsprop:
    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._squares = [torch.zeros_like(each) for each in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Tensor) -> None:
        for parameter, gradient, square in zip(
            self._parameters, gradients, self._squares, strict=True
        ):
            square.mul_(_SMOOTHING).addcmul_(gradient, gradient, value=1.0 - _SMOOTHING)
            scaled = gradient / square.sqrt().add_(_EPS)
            parameter.addcmul_(scaled, _spread(rates, scaled), value=-1.0)


class _Adam:
    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._means = [torch.zeros_like(each) for each in parameters]
        self._squares = [torch.zeros_like(each) for each in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Tensor) -> None:
        self._steps += 1
        first, second = _BETAS
        torch._foreach_lerp_(self._means, list(gradients), 1.0 - first)
        for parameter, gradient, mean, square in zip(
            self._parameters, gradients, self._means, self._squares, strict=True
        ):
            rate = _spread(rates, gradient)
            if self._decay:
                parameter.mul_(1.0 - rate * self._decay)
            square.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
            root = (square / (1.0 - second**self._steps)).sqrt_().add_(_EPS)
            parameter.addcmul_(mean / root, rate / (1.0 - first**self._steps), value=-1.0)
