"""A tiny task that counts and keeps what is done to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from lrsearch import Split, TaskData, TrainingTask

WEIGHTS = torch.tensor([[1.0], [-2.0], [0.5], [3.0]])


@dataclass
class Spy:
    """What happened: independent of the engine's own accounts.

    ``forwards`` counts training passes, ``looks`` the others, ``starts`` holds one digest of the
    initial weights a model, ``batches`` one list of digests of the inputs a model.
    """

    forwards: int = 0
    looks: int = 0
    starts: list[str] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()


class SpiedLine(nn.Linear):
    """A linear model that tells its spy about training passes, and may be told to fail."""

    def __init__(self, features: int, spy: Spy, fail_at: int | None) -> None:
        super().__init__(features, 1)
        self._spy, self._fail_at = spy, fail_at
        spy.starts.append(digest(self.weight) + digest(self.bias))
        spy.batches.append([])

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._spy.forwards += 1
            self._spy.batches[-1].append(digest(x))
            if self._spy.forwards == self._fail_at:
                raise RuntimeError("the user's own trouble")
        else:
            self._spy.looks += 1
        return super().forward(x)


def line_data(seed: int, *, test_sign: float = 1.0) -> TaskData:
    """160/40/40 rows of a line with little noise; ``test_sign`` -1 turns the test targets round."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(240, 4, generator=generator)
    targets = inputs @ WEIGHTS + 0.1 * torch.randn(240, 1, generator=generator)
    targets[200:] *= test_sign
    parts = [Split(inputs[a:b], targets[a:b]) for a, b in ((0, 160), (160, 200), (200, 240))]
    return TaskData(*parts, outputs=1, name="line")


@dataclass(frozen=True)
class Line:
    """A task and the spy in its models."""

    task: TrainingTask
    spy: Spy


@pytest.fixture
def make_line() -> Callable[..., Line]:
    """Factory of line tasks: 400 steps of mini-batches unless told otherwise."""

    def make(
        *,
        epochs: int = 40,
        batch_size: int | None = 16,
        test_sign: float = 1.0,
        fail_at: int | None = None,
    ) -> Line:
        spy = Spy()
        task = TrainingTask(
            name="line",
            data=lambda seed: line_data(seed, test_sign=test_sign),
            model=lambda data: SpiedLine(data.train.inputs.shape[1], spy, fail_at),
            loss="mse",
            metric="mse",
            epochs=epochs,
            batch_size=batch_size,
        )
        return Line(task, spy)

    return make
