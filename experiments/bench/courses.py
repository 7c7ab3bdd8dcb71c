"""A peer's training run: the weights and batches of the common loop, an update of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isfinite

import torch
from torch import Tensor, nn

from lrsearch import TaskData, TrainingTask
from lrsearch.training.batches import Batches
from lrsearch.training.loop import build_model, evaluate, loss_function, make_optimizer


@dataclass(frozen=True, slots=True)
class PeerOutcome:
    """What a method gave on a task from one seed.

    Attributes:
        lr: rate that it chose for the task's optimizer; nan where it has none.
        steps: gradient steps, any sweep or pruned trial included; three forward passes that the
            method asks for count as one, rounded up.
        train_loss, val_loss, val_metric, test_metric: of the weights that it ends with.
        diverged: whether it failed, or ended on weights or losses that are not finite.
        reason: why it ended before its last step; "" if it did not.
    """

    lr: float
    steps: int
    train_loss: float
    val_loss: float
    val_metric: float
    test_metric: float
    diverged: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Course:
    """How far a run came.

    Attributes:
        steps: gradient steps taken.
        reason: why no more were; "" after all of them.
    """

    steps: int
    reason: str = ""


def failure(error: Exception) -> str:
    """A line about what a peer raised."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def descend(
    task: TrainingTask,
    data: TaskData,
    seed: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    update: Callable[[Tensor], object] | None = None,
    between: Callable[[], None] | None = None,
) -> Course:
    """Train for the task's epochs on the batches that ``lrsearch.training.loop.train`` feeds.

    A loss that is not finite ends the run, as there, and so does an update that raises: that is
    then the peer's result.

    Args:
        task, data: what to train on.
        seed: of the batches' order.
        model, optimizer: fresh ones.
        update: takes a step, given its loss; default: ``optimizer.step()``.
        between: called after each epoch but the last.
    """
    function = loss_function(task.loss, task.loss_scale)
    batches = Batches(data.train, task.batch_size, seed)
    steps = 0
    model.train()
    for epoch in range(task.epochs):
        if epoch and between is not None:
            between()
        for inputs, targets in batches:
            loss = function(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            steps += 1
            try:
                optimizer.step() if update is None else update(loss)
            except Exception as error:  # whatever it raises
                return Course(steps, failure(error))
            if not bool(torch.isfinite(loss)):
                return Course(steps, "diverged")
            optimizer.zero_grad(set_to_none=True)
    return Course(steps)


def outcome(
    task: TrainingTask,
    data: TaskData,
    model: nn.Module,
    course: Course,
    *,
    lr: float,
    extra_steps: int = 0,
    forward_passes: int = 0,
) -> PeerOutcome:
    """The measures of a run's weights, and its bill.

    Args:
        task, data: what was trained on.
        model: as it ended.
        course: of the run.
        lr: the rate that was chosen.
        extra_steps: gradient steps before the run.
        forward_passes: batches that the method only evaluated.
    """
    parts = [evaluate(task, model, part) for part in (data.train, data.validation, data.test)]
    train, validation, test = parts
    finite = all(bool(torch.isfinite(each).all()) for each in model.parameters())
    measured = isfinite(train.loss) and isfinite(validation.loss)
    return PeerOutcome(
        lr=lr,
        steps=course.steps + extra_steps + ceil(forward_passes / 3),
        train_loss=train.loss,
        val_loss=validation.loss,
        val_metric=validation.metric,
        test_metric=test.metric,
        diverged=bool(course.reason) or not (finite and measured),
        reason=course.reason,
    )


def trained_at(
    task: TrainingTask, data: TaskData, seed: int, lr: float, *, extra_steps: int = 0
) -> PeerOutcome:
    """A run of the task's optimizer at a fixed rate."""
    model = build_model(task, data, seed)
    optimizer = make_optimizer(task.optimizer, list(model.parameters()), lr)
    course = descend(task, data, seed, model, optimizer)
    return outcome(task, data, model, course, lr=lr, extra_steps=extra_steps)
