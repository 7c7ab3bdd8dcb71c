"""The loop of [E]'s experiments: a bank of runs on the same batches, each with its own driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.banks import Bank
from lrsearch import Decision, ExpTest, Split

Parameters = Sequence[nn.Parameter]

# torch's defaults beside the rate, as [E] IV has it; the fastest form of each on the CPU.
OPTIMIZERS: Final[Mapping[str, Callable[[Any], torch.optim.Optimizer]]] = {
    "Adam": lambda groups: torch.optim.Adam(groups, fused=True),
    "SGD": lambda groups: torch.optim.SGD(groups, foreach=True),
    "SGD w/ Mom.": lambda groups: torch.optim.SGD(groups, momentum=0.9, fused=True),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, foreach=True),
    "Adadelta": lambda groups: torch.optim.Adadelta(groups, foreach=True),
}


class Driver(Protocol):
    """Moves the weights of one or more runs of a bank, once their gradients are there."""

    def step(self, losses: Sequence[Tensor]) -> None:
        """Take one step; ``losses`` are those of all runs of the bank."""


class FixedRates:
    """One optimizer for several runs, each a parameter group with its own rate.

    Args:
        method: a key of ``OPTIMIZERS``.
        rates: learning rate -> that run's parameters; None keeps the optimizer's own rate.
    """

    def __init__(self, method: str, runs: Sequence[tuple[float | None, Parameters]]) -> None:
        groups = [
            {"params": list(parameters), **({} if rate is None else {"lr": rate})}
            for rate, parameters in runs
        ]
        self._optimizer = OPTIMIZERS[method](groups)

    def step(self, losses: Sequence[Tensor]) -> None:
        """Take one step."""
        self._optimizer.step()


class Controller(Protocol):
    """``ExpTest``, or what the notebooks have in its place."""

    def step(self, loss: Tensor) -> Decision:
        """Take note of a step's loss."""


class Controlled:
    """One run under a controller; it stands still once the controller says "stop"."""

    def __init__(self, run: int, optimizer: torch.optim.Optimizer, controller: Controller) -> None:
        self._run, self._optimizer, self._controller = run, optimizer, controller
        self._stopped = False

    def step(self, losses: Sequence[Tensor]) -> None:
        """Take one step, and tell the controller."""
        if not self._stopped:
            self._optimizer.step()
            decision = self._controller.step(losses[self._run])
            self._stopped = decision.kind == "stop"


def sgd(parameters: Parameters, rate: float) -> torch.optim.Optimizer:
    """Plain gradient descent, which ExpTest drives in [E]'s tables."""
    return torch.optim.SGD(list(parameters), lr=rate, foreach=True)


def minibatches(
    split: Split, *, batch_size: int | None, seed: int, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in an order that the seed alone decides, reshuffled at each pass.

    Args:
        split: what to draw from.
        batch_size: rows; None gives the whole split each time.
        seed: of the order.
        steps: batches in all.
    """
    if batch_size is None:
        for _ in range(steps):
            yield split.inputs, split.targets
        return
    order = torch.Generator().manual_seed(seed)
    taken = 0
    while taken < steps:
        permutation = torch.randperm(len(split), generator=order)
        for rows in torch.split(permutation, batch_size):
            if taken == steps:
                return
            taken += 1
            yield split.inputs[rows], split.targets[rows]


def train(
    bank: Bank,
    drivers: Sequence[Driver],
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    after: Callable[[int], bool] | None = None,
) -> NDArray[np.float32]:
    """Train all runs of a bank in lockstep.

    Args:
        bank: of R runs.
        drivers: between them, move every run once a step.
        batches: ``steps`` of them.
        steps: how many.
        after: called with the step's number once the weights have moved; True ends the training.

    Returns:
        Losses before each step, shape (R, steps taken).
    """
    taken = 0
    losses = torch.empty(steps, len(bank))
    for step, (inputs, targets) in enumerate(batches):
        row = losses[step]
        row.copy_(bank.backward(inputs, targets))
        each = row.unbind()
        for driver in drivers:
            driver.step(each)
        taken = step + 1
        if after is not None and after(step):
            break
    return losses[:taken].T.contiguous().numpy()


@dataclass(frozen=True, slots=True)
class Story:
    """What a controller did, for a table."""

    rate: float
    restarts: int
    decays: int
    accepted: int | None

    def as_row(self) -> dict[str, float | int | None]:
        """Columns of a result."""
        return {
            "final_lr": self.rate,
            "restarts": self.restarts,
            "decays": self.decays,
            "accepted_step": self.accepted,
        }


def story(exptest: ExpTest) -> Story:
    """What ``ExpTest`` did."""
    decisions = [window.decision for window in exptest.windows]
    accepted = [w.last_step for w in exptest.windows if w.decision == "accept"]
    return Story(
        exptest.lr,
        decisions.count("restart"),
        decisions.count("decay"),
        accepted[0] if accepted else None,
    )
