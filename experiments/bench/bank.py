"""A dense bank of fixed rates: every rate and seed of a cell trained side by side.

The weights of all runs are stacked, and ``torch.func.vmap`` takes any plain module over them: a run
in the bank is what the ordinary loop trains with the same seed, rate and batches (tested).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from experiments.bench.rules import make_rule
from lrsearch import Split, TaskData, TrainingTask
from lrsearch.training.batches import Batches
from lrsearch.training.loop import LossFunction, build_model, loss_function, steps_per_epoch

# Half decades; the range holds the best rate of every optimizer under every shift of the panel.
RATES: Final = tuple(float(rate) for rate in 10.0 ** np.linspace(-7.0, 5.0, 25))
CHECKS: Final = 20

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Measures:
    """Loss and metric on a split, each of shape (seeds, rates)."""

    loss: Array
    metric: Array


@dataclass(frozen=True, slots=True)
class BankRuns:
    """What the runs of a bank gave.

    Attributes:
        rates: shape (rates,).
        seeds: shape (seeds,).
        curves: training loss of each step before it, shape (seeds, rates, steps).
        checked: steps after which validation was looked at, shape (checks,).
        checks: validation loss there, shape (seeds, rates, checks).
        train, validation, test: of the final weights.
    """

    rates: Array
    seeds: NDArray[np.int64]
    curves: Array
    checked: NDArray[np.int64]
    checks: Array
    train: Measures
    validation: Measures
    test: Measures


def train_bank(
    task: TrainingTask,
    data: Sequence[TaskData],
    seeds: Sequence[int],
    *,
    rates: Sequence[float] = RATES,
    tail: float = 0.0,
) -> BankRuns:
    """Train all rates from the weights of each seed, on that seed's batches.

    Args:
        task: what is trained, with its optimizer.
        data: of each seed, of one size.
        seeds: of weights and batches.
        rates: the fixed rates.
        tail: share of the steps at the end over which the rate falls to 0 by a line.
    """
    stack = _Stack(task, data, seeds, len(rates))
    rate = torch.tensor(rates, dtype=stack.parameters[0].dtype)
    rule = make_rule(task.optimizer, stack.parameters)
    total = steps_per_epoch(task, data[0]) * task.epochs
    curves = np.empty((len(seeds), len(rates), total), dtype=np.float32)
    checked = np.unique(np.linspace(0, total, CHECKS + 1).round().astype(np.int64))[1:]
    checks = np.empty((len(seeds), len(rates), len(checked)), dtype=np.float32)
    batches = [
        Batches(each.train, task.batch_size, seed) for each, seed in zip(data, seeds, strict=True)
    ]
    step = 0
    for _ in range(task.epochs):
        for drawn in zip(*batches, strict=True):
            left = (total - step) / (tail * total) if tail else 1.0
            losses, gradients = stack.gradients(
                torch.stack([inputs for inputs, _ in drawn]),
                torch.stack([targets for _, targets in drawn]),
            )
            rule.step(gradients, rate * min(1.0, left))
            curves[:, :, step] = losses
            step += 1
            if step in checked:
                at = int(np.searchsorted(checked, step))
                checks[:, :, at] = stack.measure([each.validation for each in data]).loss
    parts = [
        stack.measure([getattr(each, name) for each in data])
        for name in ("train", "validation", "test")
    ]
    return BankRuns(
        np.asarray(rates, np.float32), np.asarray(seeds), curves, checked, checks, *parts
    )


def _vmappable_loss(task: TrainingTask) -> LossFunction:
    """The task's loss; torch's own squared error fails under a nested ``vmap``."""
    if task.loss == "mse":
        return lambda outputs, targets: task.loss_scale * (outputs - targets).square().mean()
    return loss_function(task.loss, task.loss_scale)


class _Stack:
    """The networks of all seeds and rates, their weights of shape (seeds, rates, ...)."""

    def __init__(
        self, task: TrainingTask, data: Sequence[TaskData], seeds: Sequence[int], rates: int
    ) -> None:
        models = [build_model(task, each, seed) for each, seed in zip(data, seeds, strict=True)]
        self._task, self._model = task, models[0]
        self._function = _vmappable_loss(task)

        def stacked(tensors: list[Tensor]) -> Tensor:
            all_rates = torch.stack([each.detach() for each in tensors]).unsqueeze(1)
            return all_rates.expand(-1, rates, *tensors[0].shape).clone()

        named = [dict(model.named_parameters()) for model in models]
        self._names = list(named[0])
        self.parameters = [stacked([each[name] for each in named]) for name in self._names]
        held = [dict(model.named_buffers()) for model in models]
        self._buffers = {name: stacked([each[name] for each in held]) for name in held[0]}

    def gradients(self, inputs: Tensor, targets: Tensor) -> tuple[Array, list[Tensor]]:
        """Losses, shape (seeds, rates), and gradients on a batch of each seed."""
        leaves = [each.detach().requires_grad_() for each in self.parameters]
        losses = self._losses(dict(zip(self._names, leaves, strict=True)), inputs, targets)
        gradients = torch.autograd.grad(losses.sum(), leaves)
        return losses.detach().numpy(), list(gradients)

    @torch.no_grad()
    def measure(self, splits: Sequence[Split]) -> Measures:
        """Loss and metric of every run on its seed's split, in evaluation mode."""
        self._model.eval()
        inputs = torch.stack([split.inputs for split in splits])
        targets = torch.stack([split.targets for split in splits])
        weights = dict(zip(self._names, self.parameters, strict=True))
        outputs = self._outputs(weights, inputs)
        self._model.train()
        metric = vmap(vmap(self._metric, in_dims=(0, None)))(outputs, targets)
        loss = vmap(vmap(self._function, in_dims=(0, None)))(outputs, targets)
        return Measures(loss.numpy().astype(np.float32), metric.numpy().astype(np.float32))

    def _losses(self, weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = self._outputs(weights, inputs)
        return vmap(vmap(self._function, in_dims=(0, None)))(outputs, targets)

    def _outputs(self, weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        model: nn.Module = self._model

        def call(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(model, (weights, buffers), (x,))

        over_rates = vmap(call, in_dims=(0, 0, None), randomness="error")
        return vmap(over_rates, in_dims=(0, 0, 0), randomness="error")(
            weights, self._buffers, inputs
        )

    def _metric(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._task.metric == "mse":
            return (outputs - targets).square().mean()
        return (outputs.argmax(dim=1) == targets).float().mean()
