"""Training the CNN of [N] Table 1 epoch by epoch, under LipschitzLR or at a fixed rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import torch
from torch import Tensor, nn

from experiments.epochs import derived
from experiments.harness.cells import Row
from experiments.images import Images
from experiments.lipschitz.augmentation import Ranges, draw_moves, moved
from experiments.lipschitz.network import mnist_cnn
from lrsearch import LipschitzLR

# Purposes of random numbers: each epoch has its own, so a resumed run needs no generator's state.
_WEIGHTS, _ORDER, _MOVES, _DROPOUT = range(4)
_TEST_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Method:
    """How the rate comes about.

    Attributes:
        optimizer: makes it for the parameters.
        options: of LipschitzLR; None trains at the optimizer's own rate.
    """

    optimizer: Callable[[Any], torch.optim.Optimizer]
    options: Mapping[str, Any] | None = None


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
        torch.manual_seed(derived(seed, _WEIGHTS))
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

    def hopeless(self) -> bool:
        """A loss that is not finite: nothing comes after it."""
        return not isfinite(self.epochs[-1]["train_loss"])

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
        torch.manual_seed(derived(self._seed, _DROPOUT, number))
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
        return torch.Generator().manual_seed(derived(self._seed, *purpose))


def _scaled(pixels: Tensor) -> Tensor:
    """From 0 to 1, and nothing else: the authors' preprocessing."""
    return pixels.float().div_(255.0).contiguous(memory_format=torch.channels_last)
