"""The training loop that every method shares: same weights, same batches, same accounting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil, nan
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lrsearch.controllers.exptest import Decision
from lrsearch.errors import require_positive
from lrsearch.stats.series import FloatArray
from lrsearch.training.batches import Batches
from lrsearch.training.guard import ValidationGuard
from lrsearch.training.keeping import Keeper
from lrsearch.training.recorder import LossRecorder, make_recorder
from lrsearch.training.task import Split, TaskData, TrainingTask

MOMENTUM = 0.9
# Validation is looked at about this often in a run, for charts and for pruners that need it.
CHECKS = 20
_EVALUATION_ROWS = 8192

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss and metric on a split."""

    loss: float
    metric: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, at a window's end or a validation check.

    Attributes:
        step, total: gradient steps taken, and planned.
        lr: present learning rate.
        loss: last training loss that is known.
        pvalue: of the last window, if a test was made.
        risen: whether a guard shows that the validation loss rises.
    """

    step: int
    total: int
    lr: float
    loss: float
    pvalue: float | None = None
    risen: bool = False


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a run gave.

    Attributes:
        steps: gradient steps spent.
        lr: rate at the end.
        train, validation, test: loss and metric of the final weights, or of those that the guard
            has kept.
        diverged: whether it ended on a loss that is not finite.
        ended_early: why it ended before its last step; "" if it did not.
    """

    steps: int
    lr: float
    train: Evaluation
    validation: Evaluation
    test: Evaluation
    diverged: bool
    ended_early: str


class Controller(Protocol):
    """Drives the rate of the loop's optimizer, as ``ExpTest`` does."""

    def step(self, loss: Tensor) -> Decision:
        """Take note of a step's loss."""


class Observer(Protocol):
    """Watches a run from outside the loop. Each call may raise to end the run."""

    def stepped(self) -> None:
        """A gradient step was taken (and is to be paid for)."""

    def judged(self, progress: Progress) -> None:
        """The controller has judged a window."""

    def recorded(self, losses: FloatArray, start: int, lr: float) -> None:
        """A stretch of losses from step ``start`` on; only in runs without a controller."""

    def validated(self, validation: Evaluation, progress: Progress) -> None:
        """The validation split was looked at."""

    def epoch_ended(self) -> None:
        """Another epoch follows; the optimizer's rate may be set here."""


class SilentObserver:
    """Watches and says nothing."""

    def stepped(self) -> None:
        """Say nothing."""

    def judged(self, progress: Progress) -> None:
        """Say nothing."""

    def recorded(self, losses: FloatArray, start: int, lr: float) -> None:
        """Say nothing."""

    def validated(self, validation: Evaluation, progress: Progress) -> None:
        """Say nothing."""

    def epoch_ended(self) -> None:
        """Say nothing."""


def steps_per_epoch(task: TrainingTask, data: TaskData) -> int:
    """Gradient steps in a pass over the training split."""
    return 1 if task.batch_size is None else ceil(len(data.train) / task.batch_size)


def loss_function(name: str, scale: float = 1.0) -> LossFunction:
    """The loss of a task: mean over rows (and outputs), times a scale."""
    functions: dict[str, LossFunction] = {
        "cross_entropy": nn.functional.cross_entropy,
        "mse": nn.functional.mse_loss,
        "binary_cross_entropy": _binary_cross_entropy,
    }
    function = functions[name]
    if scale == 1.0:
        return function
    return lambda output, target: scale * function(output, target)


def _binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(
        output.reshape(target.shape), target.to(output.dtype)
    )


def make_optimizer(
    name: str,
    parameters: list[nn.Parameter],
    learning_rate: float,
    weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """One of the optimizers that a task may name, with torch's defaults besides the rate.

    Args:
        name, weight_decay: of the task; None is torch's own weight decay.
        parameters: of the model.
        learning_rate: > 0.

    Raises:
        ValueError: if the rate is not positive.
    """
    require_positive("lr", learning_rate)
    options: dict[str, Any] = {} if weight_decay is None else {"weight_decay": weight_decay}
    if name == "momentum":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=MOMENTUM, **options)
    factories: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
    }
    return factories[name](parameters, lr=learning_rate, **options)


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """Present learning rate of the first parameter group."""
    return float(optimizer.param_groups[0]["lr"])


def build_model(task: TrainingTask, data: TaskData, seed: int) -> nn.Module:
    """The task's model with the weights of ``seed``; seeds torch's global generator."""
    torch.manual_seed(seed)
    return task.model(data)


def build_optimizer(
    task: TrainingTask, model: nn.Module, learning_rate: float
) -> torch.optim.Optimizer:
    """The task's optimizer for its model, at a rate."""
    parameters = list(model.parameters())
    return make_optimizer(task.optimizer, parameters, learning_rate, task.weight_decay)


def evaluate(task: TrainingTask, model: nn.Module, split: Split) -> Evaluation:
    """Loss and metric of a model on a whole split, in evaluation mode."""
    return evaluate_rows(task, model, split, rows=False)[0]


@torch.no_grad()
def evaluate_rows(
    task: TrainingTask,
    model: nn.Module,
    split: Split,
    *,
    rows: bool = True,
    at_once: int = _EVALUATION_ROWS,
) -> tuple[Evaluation, FloatArray]:
    """Loss and metric on a whole split, and each row's loss, shape (rows,), if it is wanted.

    Args:
        task, model, split: what is looked at.
        rows: whether each row's loss is wanted.
        at_once: rows of a forward pass at most.
    """
    was_training = model.training
    model.eval()
    function = loss_function(task.loss, task.loss_scale)
    loss, metric = 0.0, 0.0
    losses: list[Tensor] = []
    for start in range(0, len(split), at_once):
        inputs = split.inputs[start : start + at_once]
        targets = split.targets[start : start + at_once]
        output = model(inputs)
        share = len(inputs) / len(split)
        loss += float(function(output, targets)) * share
        metric += _metric(task, output, targets) * share
        if rows:
            losses.append(_row_losses(task, output, targets))
    model.train(was_training)
    each = torch.cat(losses).double().cpu().numpy() if losses else np.empty(0)
    return Evaluation(loss, metric), each


def _row_losses(task: TrainingTask, output: Tensor, targets: Tensor) -> Tensor:
    """Each row's loss, whose mean is the task's; shape (rows,)."""
    if task.loss == "cross_entropy":
        losses = nn.functional.cross_entropy(output, targets, reduction="none")
    else:
        by_name: dict[str, Callable[..., Tensor]] = {
            "mse": nn.functional.mse_loss,
            "binary_cross_entropy": nn.functional.binary_cross_entropy_with_logits,
        }
        given = output.reshape(targets.shape)
        losses = by_name[task.loss](given, targets.to(given.dtype), reduction="none")
    return task.loss_scale * losses.reshape(len(targets), -1).mean(dim=1)


def _metric(task: TrainingTask, output: Tensor, targets: Tensor) -> float:
    if task.metric == "mse":
        return float(nn.functional.mse_loss(output.reshape(targets.shape), targets))
    if task.loss == "binary_cross_entropy":
        guessed = output.reshape(targets.shape) > 0.0
        return float((guessed == (targets > 0.5)).double().mean())
    return float((output.argmax(dim=1) == targets).double().mean())


def train(
    task: TrainingTask,
    data: TaskData,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    seed: int,
    controller: Controller | None = None,
    observer: Observer | None = None,
    check_every: int | None = None,
    keeper: Keeper | None = None,
    guard: ValidationGuard | None = None,
) -> TrainingOutcome:
    """Train a model for the task's epochs.

    The order of the batches depends on ``seed`` alone, so runs with the same seed are paired. A run
    without a controller ends on a loss that is not finite: going on could not help it.

    Args:
        task, data: what to train on; ``data`` on the model's device.
        model, optimizer: fresh ones.
        seed: of the batches' order.
        controller: decides about the rate after every step.
        observer: is told about steps, windows, losses and validation.
        check_every: epochs from one look at validation to the next; default: some 20 in all.
        keeper: saves the training, and puts it back where its checkpoint is: on the CPU it then
            goes on bit for bit as if it had never stopped. What the observer holds is saved if it
            is one of the keeper's parts.
        guard: looks at each check of validation; at the end the model has the weights that it kept.

    Raises:
        BaseException: what the keeper was told to leave with, or the observer raises.
    """
    function = loss_function(task.loss, task.loss_scale)
    watch = SilentObserver() if observer is None else observer
    course = _Course(Batches(data.train, task.batch_size, seed), data.train.inputs.device)
    if keeper is not None:
        keeper.begin(model, optimizer, controller)
        keeper.add("course", course)
    total = steps_per_epoch(task, data) * task.epochs
    check_every = check_every or max(1, task.epochs // CHECKS)
    ended, diverged = "", False
    model.train()
    for epoch in range(course.epoch, task.epochs):
        course.epoch = epoch
        for inputs, targets in course.batches:
            loss = course.loss = function(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            course.steps += 1
            watch.stepped()
            if guard is not None:
                course.add(loss)
            if controller is not None:
                decision = controller.step(loss)
                if decision.window is not None:
                    window = decision.window
                    watch.judged(
                        Progress(course.steps, total, decision.lr, window.loss_last, window.pvalue)
                    )
                if decision.kind == "stop":
                    ended = decision.reason if course.steps < total else ""
                    break
            elif course.keep(loss) and not bool(torch.isfinite(loss)):
                ended, diverged = "diverged", True
                break
            optimizer.zero_grad(set_to_none=True)
            if keeper is not None:
                keeper.stepped(course.steps)
        last = bool(ended) or epoch == task.epochs - 1
        if last or (epoch + 1) % check_every == 0:
            course.tell(watch, rate_of(optimizer))
            known = float(course.loss.detach())
            progress = Progress(course.steps, total, rate_of(optimizer), known)
            validation, rows = evaluate_rows(task, model, data.validation, rows=guard is not None)
            if guard is not None:
                sign = 1.0 if task.direction == "maximize" else -1.0
                score = sign * validation.metric
                risen = guard.see(rows, score, course.mean_loss(), course.steps)
                progress = replace(progress, risen=risen)
            watch.validated(validation, progress)
        if last:
            break
        rate = rate_of(optimizer)
        watch.epoch_ended()
        if rate_of(optimizer) != rate:
            course.tell(watch, rate)  # a stretch has one rate
    if guard is not None and guard.restore():
        validation = evaluate(task, model, data.validation)
    return TrainingOutcome(
        steps=course.steps,
        lr=rate_of(optimizer),
        train=evaluate(task, model, data.train),
        validation=validation,
        test=evaluate(task, model, data.test),
        diverged=diverged,
        ended_early=ended,
    )


def first_batch(task: TrainingTask, data: TaskData, seed: int) -> tuple[Tensor, Tensor]:
    """The batch of the first gradient step: inputs and targets."""
    return next(iter(Batches(data.train, task.batch_size, seed)))


class _Course:
    """How far a training is; a part of its checkpoint.

    Args:
        batches: what it is fed.
        device: where its losses live.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self.batches = batches
        self.epoch = self.steps = 0
        self.loss = torch.full((), nan, device=device)
        self._recorder: LossRecorder | None = None
        self._told = 0
        self._sum = torch.zeros((), device=device)
        self._summed = 0

    def add(self, loss: Tensor) -> None:
        """Count a loss in the mean. Never waits for the device."""
        self._sum += loss.detach()
        self._summed += 1

    def mean_loss(self) -> float:
        """Mean of the losses that were added since the last call. Waits for the device."""
        mean = float(self._sum) / max(self._summed, 1)
        self._sum.zero_()
        self._summed = 0
        return mean

    def keep(self, loss: Tensor) -> bool:
        """Keep a loss that no controller keeps; returns whether the curve has diverged."""
        if self._recorder is None:
            self._recorder = make_recorder(loss)
        return self._recorder.append(loss)

    def tell(self, watch: Observer, rate: float) -> None:
        """Tell the losses that were kept since the last time."""
        if self._recorder is not None and self.steps > self._told:
            watch.recorded(self._recorder.values(), self._told, rate)
            self._recorder.clear()
            self._told = self.steps

    def state_dict(self) -> dict[str, Any]:
        """Place, last loss, and the losses that were not told yet. Waits for the device."""
        losses = None if self._recorder is None else torch.from_numpy(self._recorder.values())
        return {
            "batches": self.batches.state_dict(),
            "epoch": self.epoch,
            "steps": self.steps,
            "loss": self.loss.detach(),
            "losses": losses,
            "told": self._told,
            "sum": self._sum.clone(),
            "summed": self._summed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, within an epoch too."""
        self.batches.load_state_dict(state["batches"])
        self.epoch, self.steps = int(state["epoch"]), int(state["steps"])
        self._told = int(state["told"])
        self._sum.copy_(state["sum"])
        self._summed = int(state["summed"])
        self.loss = state["loss"].to(self.loss.device)
        self._recorder = None
        if state["losses"] is not None:
            self._recorder = make_recorder(self.loss)
            self._recorder.load(state["losses"].tolist())
