"""Tasks that worker processes can import, and what tests of workers do with them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from lrsearch import Split, TaskData, TrainingTask

WEIGHTS = torch.tensor([[1.0], [-2.0], [0.5], [3.0]])


def line_data(seed: int) -> TaskData:
    """160/40/40 rows of a line with little noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(240, 4, generator=generator)
    targets = inputs @ WEIGHTS + 0.1 * torch.randn(240, 1, generator=generator)
    parts = [Split(inputs[a:b], targets[a:b]) for a, b in ((0, 160), (160, 200), (200, 240))]
    return TaskData(*parts, outputs=1, name="line")


class Slow(nn.Linear):
    """A line that takes its time over each training pass, as a network would."""

    seconds = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.seconds:
            time.sleep(self.seconds)
        return super().forward(x)


class Slower(Slow):
    seconds = 0.01


class Deadly(Slow):
    """Kills its process, once: at the 60th training pass while the file that is named is there."""

    def __init__(self) -> None:
        super().__init__(4, 1)
        self._passes = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._passes += 1
            if self._passes == 60:
                mark = Path(os.environ["LRSEARCH_TEST_MARK"])
                try:
                    mark.unlink()  # of two workers one alone
                except FileNotFoundError:
                    return super().forward(x)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Mortal(Slow):
    """Kills every process that trains it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Broken(Slow):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the user's own trouble")


class Hungry(Slow):
    """Runs out of the device's memory at rates of 1 and more, as far as it says."""

    def forward(self, x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Greedy(Slow):
    """Asks once for far more memory than any device has, while the file that is named is there."""

    def forward(self, x: Tensor) -> Tensor:
        mark = Path(os.environ["LRSEARCH_TEST_MARK"])
        if mark.exists():
            mark.unlink()
            torch.empty(2**50, device=x.device)
        return super().forward(x)


def _task(name: str, kind: type[Slow]) -> TrainingTask:
    def model(data: TaskData) -> nn.Module:
        return kind() if kind is Deadly else kind(4, 1)

    return TrainingTask(name, line_data, model, loss="mse", metric="mse", epochs=40, batch_size=16)


# Built by functions of the module's own: what is named by package.module:attribute.
def line() -> TrainingTask:
    return _task("line", Slow)


def slow_line() -> TrainingTask:
    return _task("slow-line", Slower)


def deadly_line() -> TrainingTask:
    return _task("deadly-line", Deadly)


def mortal_line() -> TrainingTask:
    return _task("mortal-line", Mortal)


def broken_line() -> TrainingTask:
    return _task("broken-line", Broken)


def greedy_line() -> TrainingTask:
    return _task("greedy-line", Greedy)


def hungry_line() -> TrainingTask:
    return _task("hungry-line", Hungry)
