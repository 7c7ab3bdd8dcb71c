"""Training a deep network epoch by epoch, with the whole set on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import ceil, isfinite
from typing import Any, Final

import torch
from torch import Tensor, nn

from experiments.deep.drivers import Driver, Method
from experiments.deep.models.network import Network
from experiments.deep.preparation import Preparation
from experiments.deep.speed import Speed
from experiments.epochs import derived
from experiments.harness.cells import Row
from experiments.images import Images
from experiments.lipschitz.augmentation import Moves, draw_moves

# Purposes of random numbers: each epoch has its own, so a resumed run needs no generator's state.
_WEIGHTS, _ORDER, _MOVES, _DROPOUT = range(4)
_TEST_BATCH: Final = 1000


class DeepRun:
    """One network on its way; an ``EpochRun``.

    Order, moves and first weights are drawn on the CPU, so that they are the same everywhere;
    dropout is the device's own. Within an epoch nothing waits for the device but what the driver
    looks at.

    Args:
        images: what to train and test on, on the device of ``speed``.
        network: builds it.
        method: optimizer and rule of the rate.
        seed: of weights, order, moves and dropout; the same for every method.
        batch_size: rows a step; the last step of an epoch has what is left.
        epochs: of the whole run.
        preparation: of the images.
        speed: device, precision and layout.
    """

    def __init__(
        self,
        images: Images,
        network: Callable[[], Network],
        method: Method,
        *,
        seed: int,
        batch_size: int,
        epochs: int,
        preparation: Preparation,
        speed: Speed,
    ) -> None:
        self._images, self._seed, self._batch_size = images, seed, batch_size
        self._preparation, self._speed = preparation, speed
        torch.manual_seed(derived(seed, _WEIGHTS))
        self._network = network()
        speed.placed(self._network)
        steps = epochs * ceil(len(images.train) / batch_size)
        self._driver: Driver = method(self._network, batch_size, steps)
        self.epochs: list[Row] = []
        self.losses: list[Tensor] = []

    def epoch(self) -> Row:
        """Train one epoch, and test; its row is the last of ``epochs``."""
        began = time.perf_counter()
        number = len(self.epochs)
        with self._speed.applied():
            losses, hits, seen = self._train(number)
            row: Row = {
                "epoch": number + 1,
                "train_loss": float(losses.double().mean()),
                "train_accuracy": 100.0 * hits / seen,
            }
            row["accuracy"], row["test_loss"] = self._test()
            row |= self._driver.close_epoch()
        row["seconds"] = time.perf_counter() - began
        self.losses.append(losses)
        self.epochs.append(row)
        return row

    def hopeless(self) -> bool:
        """The driver stopped, or a loss is not finite and nothing will begin anew."""
        lost = not isfinite(float(self.losses[-1][-1]))
        return self._driver.stopped or (lost and not self._driver.restarts)

    def state_dict(self) -> dict[str, Any]:
        """All that an epoch's end leaves; random numbers follow from seed and epoch."""
        return {
            "network": self._network.state_dict(),
            "driver": self._driver.state_dict(),
            "epochs": self.epochs,
            "losses": self.losses,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the epoch at whose end the state was taken."""
        self._network.load_state_dict(state["network"])
        self._driver.load_state_dict(state["driver"])
        self.epochs, self.losses = list(state["epochs"]), list(state["losses"])

    def _train(self, number: int) -> tuple[Tensor, int, int]:
        """Losses of the steps (on the CPU); how many rows were right on their way, of how many."""
        images, labels = self._images.train, self._images.train_labels
        order = torch.randperm(len(images), generator=self._generator(_ORDER, number))
        order, moves = order.to(images.device), self._moves(number)
        torch.manual_seed(derived(self._seed, _DROPOUT, number))
        self._network.train()
        losses, seen = [], 0
        hits = torch.zeros((), dtype=torch.long, device=images.device)
        for begin in range(0, len(images), self._batch_size):
            part = slice(begin, begin + self._batch_size)
            rows = order[part]
            inputs = self._preparation(images[rows], None if moves is None else moves[part])
            losses.append(self._step(inputs, labels[rows], hits))
            seen += len(rows)
            if self._driver.stopped:
                break
        return torch.stack(losses).float().cpu(), int(hits), seen

    def _step(self, inputs: Tensor, targets: Tensor, hits: Tensor) -> Tensor:
        """One gradient step; its loss, before the step."""
        self._driver.optimizer.zero_grad()
        self._speed.begin_step()
        with self._speed.autocast():
            outputs = self._network(self._speed.laid_out(inputs))
            loss = nn.functional.cross_entropy(outputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._driver.step(loss)
        hits += (outputs.detach().argmax(1) == targets).sum()
        return loss.detach()

    @torch.no_grad()
    def _test(self) -> tuple[float, float]:
        """Accuracy in percent, and mean loss; waits for the device once."""
        self._network.eval()
        images, labels = self._images.test, self._images.test_labels
        sums = torch.zeros(2, dtype=torch.float64, device=images.device)
        for pixels, targets in zip(
            torch.split(images, _TEST_BATCH), torch.split(labels, _TEST_BATCH), strict=True
        ):
            self._speed.begin_step()
            with self._speed.autocast():
                outputs = self._network(self._speed.laid_out(self._preparation(pixels)))
            outputs = outputs.float()
            sums[0] += (outputs.argmax(1) == targets).sum()
            sums[1] += nn.functional.cross_entropy(outputs, targets, reduction="sum")
        hits, loss = sums.tolist()
        return 100.0 * hits / len(images), loss / len(images)

    def _moves(self, number: int) -> Moves | None:
        """Those of an epoch's images, in the order of its steps."""
        images, ranges = self._images.train, self._preparation.ranges
        if ranges is None:
            return None
        generator = self._generator(_MOVES, number)
        return draw_moves(len(images), images.shape[-1], ranges, generator).to(images.device)

    def _generator(self, *purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived(self._seed, *purpose))
