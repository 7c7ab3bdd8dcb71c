"""What is trained: data, model, loss and metric, as one immutable description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lrsearch.bounds.losses import LOSSES
from lrsearch.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    require_choice,
    require_not_negative,
    require_positive,
)

Metric = Literal["accuracy", "mse"]
METRICS = ("accuracy", "mse")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a data set, whole in memory.

    Attributes:
        inputs: shape (samples, ...), what the model is fed, scaled as it is trained on.
        targets: shape (samples,) of class indices, or (samples, outputs) of values.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise InvalidArgumentError(
                f"inputs and targets must have the same length, got {len(self.inputs)} "
                f"and {len(self.targets)}"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True, slots=True)
class TaskData:
    """Train, validation and test splits. Choices are made on validation, never on test.

    Attributes:
        train: what the weights see.
        validation: what a search chooses by.
        test: what is reported.
        outputs: number of the model's outputs (classes, or regression targets).
        name: the data set's name, for the record.
    """

    train: Split
    validation: Split
    test: Split
    outputs: int
    name: str = "data"


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """A training problem that a search can run again and again.

    Attributes:
        name: short name, used in studies and runs.
        data: called with the seed of the split; returns the data. Called once per study.
        model: called with the data; returns a fresh model on the CPU. The global torch generator is
            seeded before each call, so that every trial of one seed starts from the same weights.
        loss: "cross_entropy" (class indices), "binary_cross_entropy" (logits, targets 0.0 or 1.0)
            or "mse" (torch's, without the factor 1/2).
        metric: "accuracy" (maximised) or "mse" (minimised).
        epochs: passes over the training split.
        batch_size: rows per gradient step; None for full-batch descent.
        optimizer: one of "sgd", "momentum" (SGD with momentum 0.9), "adam", "adamw", "rmsprop".
        loss_scale: what the loss is multiplied by, as where it is a sum or weighs among others.
        weight_decay: of the optimizer, as torch's means it (a penalty in the gradient; with "adamw"
            a shrinking of the weights); None for torch's default (0; 0.01 with "adamw").

    Raises:
        ValueError: if an option is not one of those listed, or a count is not positive.
        TypeError: if ``data`` or ``model`` cannot be called.
    """

    name: str
    data: Callable[[int], TaskData]
    model: Callable[[TaskData], nn.Module]
    loss: str = "cross_entropy"
    metric: Metric = "accuracy"
    epochs: int = 30
    batch_size: int | None = 32
    optimizer: str = "sgd"
    loss_scale: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        for name in ("data", "model"):
            if not callable(getattr(self, name)):
                raise InvalidTypeError(
                    f"{name} of task {self.name!r} must be callable, got {getattr(self, name)!r}"
                )
        require_choice("loss", self.loss, LOSSES)
        require_choice("metric", self.metric, METRICS)
        require_choice("optimizer", self.optimizer, OPTIMIZERS)
        require_positive("loss_scale", self.loss_scale)
        if self.weight_decay is not None:
            require_not_negative("weight_decay", self.weight_decay)
        if self.epochs < 1:
            raise InvalidArgumentError(f"epochs must be at least 1, got {self.epochs!r}")
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidArgumentError(
                f"batch_size must be at least 1, or None for full batch, got {self.batch_size!r}"
            )

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Which way the metric improves."""
        return "maximize" if self.metric == "accuracy" else "minimize"
