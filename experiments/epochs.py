"""Trainings that are counted in epochs: where they end, how they go on, what is told of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from experiments.harness.cells import Measured, Row
from lrsearch.errors import CheckpointError, InvalidArgumentError
from lrsearch.training.checkpoints import Checkpoint


class EpochRun(Protocol):
    """One network on its way.

    Attributes:
        epochs: a row for each: "epoch" (from 1), "lr", "train_loss", "train_accuracy",
            "accuracy", "test_loss", "seconds" and more.
        losses: of each epoch, shape (steps,), on the CPU.
    """

    epochs: list[Row]
    losses: list[Tensor]

    def epoch(self) -> Row:
        """Train one epoch, and test."""

    def hopeless(self) -> bool:
        """Whether further epochs would tell nothing: the weights are lost, or stand still."""

    def state_dict(self) -> dict[str, Any]:
        """All that an epoch's end leaves."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the epoch at whose end the state was taken."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a run ends.

    Attributes:
        epochs: so many in all.
        deadline: of ``time.monotonic()``; the epoch that runs is finished.
        save_every: seconds between checkpoints; the last epoch of a call is always saved.
    """

    epochs: int
    deadline: float = inf
    save_every: float = 0.0


def train(run: EpochRun, limits: Limits, checkpoint: Checkpoint | None = None) -> Measured:
    """Train from where the checkpoint is, and save after epochs.

    Returns:
        One row with the best and the last epoch, the losses of all steps, and the epochs' rows; not
        complete if the deadline came first.

    Raises:
        InvalidArgumentError: if the checkpoint cannot be written.
    """
    state = None if checkpoint is None else checkpoint.load()
    if state is not None:
        run.load_state_dict(state)
    saved = time.monotonic()
    while not _ended(run, limits):
        run.epoch()
        now = time.monotonic()
        last = now > limits.deadline or _ended(run, limits)
        if checkpoint is not None and (last or now - saved >= limits.save_every):
            _keep(run, checkpoint)
            saved = time.monotonic()
        if last:
            break
    return Measured(
        [summary(run.epochs)],
        [torch.cat(run.losses).numpy()],
        history=[run.epochs],
        complete=_ended(run, limits),
    )


def _keep(run: EpochRun, checkpoint: Checkpoint) -> None:
    """Save, or say in the command's words that its folder takes nothing."""
    try:
        checkpoint.save(run.state_dict())
    except CheckpointError as error:
        raise InvalidArgumentError(f"--out: {error}") from error


def summary(epochs: list[Row]) -> Row:
    """A run in one row. "VA" of [L] Table 3 is the best epoch on the test set."""
    accuracy = [row["accuracy"] for row in epochs]
    best, last = int(np.argmax(accuracy)), epochs[-1]
    return {
        "epochs": len(epochs),
        "accuracy": accuracy[best],
        "best_epoch": epochs[best]["epoch"],
        "accuracy_last": last["accuracy"],
        "train_accuracy": last["train_accuracy"],
        "train_loss": last["train_loss"],
        "test_loss": last["test_loss"],
        "first_lr": epochs[0]["lr"],
        "final_lr": last["lr"],
        "seconds": sum(row["seconds"] for row in epochs),
        "diverged": int(not isfinite(last["train_loss"])),
    }


def derived(*numbers: int) -> int:
    """One seed of several numbers."""
    low, high = np.random.SeedSequence(numbers).generate_state(2)
    return int(high) << 32 | int(low)


def _ended(run: EpochRun, limits: Limits) -> bool:
    return bool(run.epochs) and (len(run.epochs) >= limits.epochs or run.hopeless())
