"""Training the CNN of [N] Table 1 epoch by epoch, under LipschitzLR or at a fixed rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from experiments.harness.cells import Measured, Row
from experiments.lipschitz.augmentation import Ranges, draw_moves, moved
from experiments.lipschitz.network import mnist_cnn
from lrsearch import LipschitzLR
from lrsearch.errors import CheckpointError, InvalidArgumentError
from lrsearch.tasks.sources import read_arrays
from lrsearch.training.checkpoints import Checkpoint

# Purposes of random numbers: each epoch has its own, so a resumed run needs no generator's state.
_WEIGHTS, _ORDER, _MOVES, _DROPOUT = range(4)
_TEST_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Images:
    """Pixels as they come (uint8, shape (rows, 1, side, side)) and labels, on one device."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True, slots=True)
class Method:
    """How the rate comes about.

    Attributes:
        optimizer: makes it for the parameters.
        options: of LipschitzLR; None trains at the optimizer's own rate.
    """

    optimizer: Callable[[Any], torch.optim.Optimizer]
    options: Mapping[str, Any] | None = None


def mnist_images(
    data_dir: str | None, device: torch.device, *, train: int | None = None, test: int | None = None
) -> Images:
    """The first rows of MNIST; all of them by default."""
    arrays = read_arrays("mnist", data_dir)

    def part(name: str, rows: int | None) -> tuple[Tensor, Tensor]:
        pixels = torch.tensor(arrays[f"{name}_images"][:rows]).unsqueeze(1)
        labels = torch.tensor(arrays[f"{name}_labels"][:rows]).long()
        return pixels.to(device), labels.to(device)

    return Images(*part("train", train), *part("test", test))


class CnnRun:
    """One network on its way: what has been trained so far, and the next epoch.

    The rate of an epoch is in its row, with the K_z and L that it follows from: those of the epoch
    before, or of the first batch.

    Args:
        images: what to train and test on.
        method: optimizer and rule of the rate.
        seed: of weights, order, augmentation and dropout; the same for every method.
        batch_size: rows a step; the last step of an epoch has what is left, as in Keras.
        ranges: of the augmentation.
    """

    def __init__(
        self,
        images: Images,
        method: Method,
        *,
        seed: int,
        batch_size: int,
        ranges: Ranges = Ranges(),  # noqa: B008  # frozen
    ) -> None:
        self._images, self._seed, self._batch_size, self._ranges = images, seed, batch_size, ranges
        torch.manual_seed(_derived(seed, _WEIGHTS))
        device = images.train.device
        self._model = mnist_cnn().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = method.optimizer(self._model.parameters())
        self._controller: LipschitzLR | None = None
        if method.options is not None:
            self._controller = LipschitzLR(
                self._optimizer, self._model, batch_size=batch_size, **method.options
            )
        self.epochs: list[Row] = []
        self.losses: list[Tensor] = []

    def epoch(self) -> Row:
        """Train one epoch, and test; its row is the last of ``epochs``."""
        began = time.perf_counter()
        number = len(self.epochs)
        losses, hits = self._train(number)
        before = None if self._controller is None else self._controller.last
        row: Row = {
            "epoch": number + 1,
            "lr": float(self._optimizer.param_groups[0]["lr"]),
            "k_z": before.k_z if before is not None else None,
            "lipschitz": before.lipschitz if before is not None else None,
            "train_loss": float(losses.double().mean()),
            "train_accuracy": 100.0 * hits / len(self._images.train),
        }
        row["accuracy"], row["test_loss"] = self._test()
        if self._controller is not None:
            after = self._controller.step()
            row["note"] = after.reason
        row["seconds"] = time.perf_counter() - began
        self.losses.append(losses)
        self.epochs.append(row)
        return row

    def state_dict(self) -> dict[str, Any]:
        """All that an epoch's end leaves; random numbers follow from seed and epoch."""
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "controller": None if self._controller is None else self._controller.state_dict(),
            "epochs": self.epochs,
            "losses": self.losses,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the epoch at whose end the state was taken."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._controller is not None:
            self._controller.load_state_dict(state["controller"])
        self.epochs, self.losses = list(state["epochs"]), list(state["losses"])

    def _train(self, number: int) -> tuple[Tensor, int]:
        """Losses of the epoch's steps (on the CPU), and how many rows were right on their way."""
        images, labels = self._images.train, self._images.train_labels
        order = torch.randperm(len(images), generator=self._generator(_ORDER, number))
        moves = self._generator(_MOVES, number)
        torch.manual_seed(_derived(self._seed, _DROPOUT, number))
        self._model.train()
        losses, hits = [], torch.zeros((), dtype=torch.long, device=images.device)
        for rows in torch.split(order.to(images.device), self._batch_size):
            inputs = _scaled(images[rows])
            inputs = moved(inputs, draw_moves(len(rows), inputs.shape[-1], self._ranges, moves))
            targets = labels[rows]
            self._optimizer.zero_grad()
            outputs = self._model(inputs)
            loss = nn.functional.cross_entropy(outputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._optimizer.step()
            losses.append(loss.detach())
            hits += (outputs.detach().argmax(1) == targets).sum()
        return torch.stack(losses).cpu(), int(hits)

    @torch.inference_mode()
    def _test(self) -> tuple[float, float]:
        """Accuracy in percent, and mean loss."""
        self._model.eval()
        images, labels = self._images.test, self._images.test_labels
        hits, loss = 0, 0.0
        batches = zip(
            torch.split(images, _TEST_BATCH), torch.split(labels, _TEST_BATCH), strict=True
        )
        for pixels, targets in batches:
            outputs = self._model(_scaled(pixels))
            hits += int((outputs.argmax(1) == targets).sum())
            loss += float(nn.functional.cross_entropy(outputs, targets, reduction="sum"))
        return 100.0 * hits / len(images), loss / len(images)

    def _generator(self, *purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(_derived(self._seed, *purpose))


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a run ends.

    Attributes:
        epochs: so many in all.
        deadline: of ``time.monotonic()``; the epoch that runs is finished.
    """

    epochs: int
    deadline: float = inf


def train(run: CnnRun, limits: Limits, checkpoint: Checkpoint | None = None) -> Measured:
    """Train from where the checkpoint is, and save after each epoch.

    A loss that is not finite ends the run: nothing comes after it.

    Returns:
        One row with the best and the last epoch, the losses of all steps, and the epochs' rows; not
        complete if the deadline came first.

    Raises:
        InvalidArgumentError: if the checkpoint cannot be written.
    """
    state = None if checkpoint is None else checkpoint.load()
    if state is not None:
        run.load_state_dict(state)
    while not _ended(run, limits):
        run.epoch()
        if checkpoint is not None:
            _keep(run, checkpoint)
        if time.monotonic() > limits.deadline:
            break
    return Measured(
        [summary(run.epochs)],
        [torch.cat(run.losses).numpy()],
        history=[run.epochs],
        complete=_ended(run, limits),
    )


def _keep(run: CnnRun, checkpoint: Checkpoint) -> None:
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


def _ended(run: CnnRun, limits: Limits) -> bool:
    if not run.epochs:
        return False
    return len(run.epochs) >= limits.epochs or not isfinite(run.epochs[-1]["train_loss"])


def _scaled(pixels: Tensor) -> Tensor:
    """From 0 to 1, and nothing else: the authors' preprocessing."""
    return pixels.float().div_(255.0).contiguous(memory_format=torch.channels_last)


def _derived(*numbers: int) -> int:
    """One seed of several numbers."""
    low, high = np.random.SeedSequence(numbers).generate_state(2)
    return int(high) << 32 | int(low)
