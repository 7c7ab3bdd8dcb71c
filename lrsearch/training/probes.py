"""Probes of a race: a task's first steps at one rate after another, from the same weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, isfinite

import numpy as np
import torch
from torch import Tensor

from lrsearch.controllers.race import (
    FURTHEST,
    Fate,
    Order,
    Probe,
    RaceSettings,
    hopeless,
    next_move,
)
from lrsearch.training.batches import Batches
from lrsearch.training.gradients import gets_no_gradient
from lrsearch.training.loop import build_model, build_optimizer, loss_function
from lrsearch.training.task import TaskData, TrainingTask
from lrsearch.training.threads import suitable_threads

# Rungs above the rate at which the loss would be zero: where it never rises there is no edge.
BEYOND = 3
# Losses on an accelerator are read so many at a time: reading one waits for it.
_CHUNK = 16
# A gradient step costs as much as so many forward passes.
_FORWARDS = 3


@dataclass(frozen=True, slots=True)
class Race:
    """What a race has found.

    Attributes:
        rung: the winner's.
        reason: why it won.
        lower: the rate to train is so many rungs (a part of one) below the winner's.
        first: rate of rung 0.
        beta: ratio of a rung to the one above.
        probes: by rung, in the order in which they were begun.
        forwards: forward passes that found the first rate, a third of a gradient step each; the
            gradient that they follow counts as three.
    """

    rung: int
    reason: str
    lower: float
    first: float
    beta: float
    probes: dict[int, Probe]
    forwards: int

    @property
    def rate(self) -> float:
        """The one to train."""
        return self.rate_of(self.rung + self.lower)

    @property
    def holds(self) -> bool:
        """Whether any rate trained: a race that all have lost has no winner but in name."""
        return self.probes[self.rung].fate == "alive"

    @property
    def forward_steps(self) -> int:
        """The forward passes in gradient steps, at a third each."""
        return ceil(self.forwards / _FORWARDS)

    @property
    def steps(self) -> int:
        """Gradient steps that it took, forward passes included."""
        return sum(probe.losses.size for probe in self.probes.values()) + self.forward_steps

    def rate_of(self, rung: float) -> float:
        """Learning rate of a rung."""
        return float(self.first * self.beta**rung)


def run_race(
    task: TrainingTask, data: TaskData, seed: int, settings: RaceSettings, *, device: str = "cpu"
) -> Race:
    """Race the rates of a task. Every rung starts at the weights of ``seed``, on its batches.

    Args:
        task, data, seed: what is trained.
        settings: of the race.
        device: where; the data are moved there if they are elsewhere.
    """
    data = replace(data, train=data.train.to(device))
    with suitable_threads(build_model(task, data, seed), task.batch_size or len(data.train)):
        first, forwards = first_rate(task, data, seed, settings.beta)
        runs: dict[int, _Run] = {}
        while isinstance(move := next_move(settings, _probes(runs)), Order):
            run = runs.get(move.rung)
            if run is None:
                rate = first * settings.beta**move.rung
                run = runs[move.rung] = _Run(task, data, seed, rate)
            run.advance(move.steps)
    return Race(move.rung, move.reason, move.lower, first, settings.beta, _probes(runs), forwards)


def first_rate(task: TrainingTask, data: TaskData, seed: int, beta: float) -> tuple[float, int]:
    """The highest rung at which one step still lowers the loss of its own batch.

    The ladder hangs on the rate at which the loss, went it on falling as steeply as at the first
    weights, would be zero (Polyak, 1987): scaling the loss or the inputs moves it as it should.

    Returns:
        The rate, and how many forward passes that took; the first gradient counts as three.
    """
    model = build_model(task, data, seed).to(data.train.inputs.device)
    optimizer = build_optimizer(task, model, 1.0)
    inputs, targets = next(iter(Batches(data.train, task.batch_size, seed)))
    function = loss_function(task.loss, task.loss_scale)
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    model.train()
    loss = function(model(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    optimizer.step()
    moves = [p.detach() - s for p, s in zip(parameters, start, strict=True)]
    steepness = -sum(
        float((g.double() * m.double()).sum()) for g, m in zip(gradients, moves, strict=True)
    )
    value = float(loss.detach())
    if not (steepness > 0.0 and isfinite(steepness) and value > 0.0):
        return 1.0, _FORWARDS
    anchor = value / steepness
    calls = _FORWARDS

    @torch.no_grad()
    def falls(rung: int) -> bool:
        nonlocal calls
        calls += 1
        for p, s, m in zip(parameters, start, moves, strict=True):
            p.copy_(s + anchor * beta**rung * m)
        return float(function(model(inputs), targets)) <= value

    rung = 0
    if falls(rung):
        while rung > -BEYOND and falls(rung - 1):
            rung -= 1
    else:
        while rung < FURTHEST and not falls(rung + 1):
            rung += 1
        rung += 1
    return anchor * beta**rung, calls


class _Run:
    """A rung under way."""

    def __init__(self, task: TrainingTask, data: TaskData, seed: int, rate: float) -> None:
        self._model = build_model(task, data, seed).to(data.train.inputs.device)
        self._model.train()
        self._optimizer = build_optimizer(task, self._model, rate)
        self._batches = _endless(Batches(data.train, task.batch_size, seed))
        self._function = loss_function(task.loss, task.loss_scale)
        self._losses: list[float] = []
        self._fate: Fate = "alive"
        self._seconds = 0.0

    def advance(self, steps: int) -> None:
        began = time.perf_counter()
        pending: list[Tensor] = []
        while len(self._losses) < steps and self._fate == "alive":
            inputs, targets = next(self._batches)
            self._optimizer.zero_grad()
            loss = self._function(self._model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._optimizer.step()
            pending.append(loss.detach())
            full = len(pending) >= (1 if loss.device.type == "cpu" else _CHUNK)
            if full or len(self._losses) + len(pending) >= steps:
                self._read(pending)
                pending = []
        if self._fate == "alive" and gets_no_gradient(self._model.parameters()):
            self._fate = "dead"
        self._seconds += time.perf_counter() - began

    def _read(self, pending: list[Tensor]) -> None:
        for loss in torch.stack(pending).tolist():
            self._losses.append(loss)
            if hopeless(self._losses):
                self._fate = "diverged"

    def probe(self) -> Probe:
        return Probe(np.asarray(self._losses), self._fate, self._seconds)


def _probes(runs: dict[int, _Run]) -> dict[int, Probe]:
    return {rung: run.probe() for rung, run in runs.items()}


def _endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from batches
