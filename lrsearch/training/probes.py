"""Probes of a race: a task's first steps at one rate after another, from the same weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, isfinite

import numpy as np
import torch
from torch import Tensor

from lrsearch.controllers.race import FURTHEST, Finish, RaceSettings, Winner, next_move
from lrsearch.controllers.rungs import Fate, Probe, Tail, hopeless
from lrsearch.training.batches import Batches
from lrsearch.training.gradients import gets_no_gradient
from lrsearch.training.loop import build_model, build_optimizer, evaluate_rows, loss_function
from lrsearch.training.task import Split, TaskData, TrainingTask
from lrsearch.training.threads import suitable_threads

# Rungs above the rate at which the loss would be zero: where it never rises there is no edge.
BEYOND = 3
# Losses on an accelerator are read so many at a time: reading one waits for it.
_CHUNK = 16
# Rows held back that tell ends apart: all rungs meet the same ones. So many, or so many batches.
_HELD_ROWS, _HELD_BATCHES = 128, 4
# Steps in which units that get no gradient may come back: momentum moves weights on.
_REVIVAL = 32
# Of a tail at most: each is told to trackers.
_STAIRS = 20
# A gradient step costs as much as so many forward passes.
_FORWARDS = 3


@dataclass(frozen=True, slots=True)
class Race:
    """What a race has found.

    Attributes:
        rung: the winner's.
        reason: why it won.
        first: rate of rung 0.
        beta: ratio of a rung to the one above.
        probes: by rung, in the order in which they were begun.
        forwards: forward passes that found the first rate and told ends apart, a third of a
            gradient step each; the gradient that the first ones follow counts as three.
    """

    rung: int
    reason: str
    first: float
    beta: float
    probes: dict[int, Probe]
    forwards: int

    @property
    def rate(self) -> float:
        """The one to train."""
        return self.rate_of(self.rung)

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
        return sum(probe.steps for probe in self.probes.values()) + self.forward_steps

    def rate_of(self, rung: int) -> float:
        """Learning rate of a rung."""
        return float(self.first * self.beta**rung)


def run_race(
    task: TrainingTask, data: TaskData, seed: int, settings: RaceSettings, *, device: str = "cpu"
) -> Race:
    """Race the rates of a task. Every rung starts at the weights of ``seed``, on its batches.

    Args:
        task, data, seed: what is trained.
        settings: of the race. Where the metric is the loss itself, ``kept`` is 1: every fall of it
            counts, while an accuracy is level over a wide range of rates.
        device: where; the data are moved there if they are elsewhere.
    """
    if task.metric == "mse":
        settings = replace(settings, kept=1.0)
    data = replace(data, train=data.train.to(device))
    held = _held_back(task, data, seed, device)
    guess = constant_loss(task, data.train, held)
    with suitable_threads(build_model(task, data, seed), task.batch_size or len(data.train)):
        first, forwards = first_rate(task, data, seed, settings.beta)
        runs: dict[int, _Run] = {}
        while not isinstance(move := next_move(settings, _probes(runs), guess=guess), Winner):
            if isinstance(move, Finish):
                runs[move.rung].finish(move.steps, held)
                continue
            run = runs.get(move.rung)
            if run is None:
                rate = first * settings.beta**move.rung
                run = runs[move.rung] = _Run(task, data, seed, rate)
            run.advance(move.steps)
    probes = _probes(runs)
    looks = sum(tail.rows.size > 0 for probe in probes.values() for tail in probe.tails.values())
    forwards += looks * ceil(len(held) / (task.batch_size or len(held)))
    return Race(move.rung, move.reason, first, settings.beta, probes, forwards)


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


def _held_back(task: TrainingTask, data: TaskData, seed: int, device: str) -> Split:
    """Some rows of validation, drawn by the seed."""
    rows = len(data.validation)
    batch = task.batch_size or len(data.train)
    few = min(rows, max(_HELD_ROWS, _HELD_BATCHES * batch))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:few]
    chosen = order.to(data.validation.inputs.device)
    split = data.validation
    return Split(split.inputs[chosen], split.targets[chosen]).to(device)


def constant_loss(task: TrainingTask, train: Split, held: Split) -> float:
    """Loss on rows held back of the output that is best on the training rows without their inputs.

    For classes these are the logarithms of their shares (each counted once more), for values their
    mean, for chances its logit.

    Args:
        task: its loss counts.
        train, held: on one device.
    """
    targets = train.targets
    if task.loss == "cross_entropy" and not targets.is_floating_point():
        known = [labels[labels >= 0].flatten() for labels in (targets, held.targets)]
        classes = int(torch.cat(known).max()) + 1
        shares = torch.bincount(known[0], minlength=classes) + 1.0
        output = torch.log(shares / shares.sum())
        # Where a row has many labels, the classes are its second dimension.
        output = output.reshape(-1, *[1] * (targets.ndim - 1))
        shape = (len(held), classes, *targets.shape[1:])
    else:
        mean = targets.float().mean(dim=0)
        if task.loss == "cross_entropy":
            mean = torch.log(mean)
        if task.loss == "binary_cross_entropy":
            mean = torch.logit(mean, eps=1e-6)
        output, shape = mean, (len(held), *mean.shape)
    return float(loss_function(task.loss, task.loss_scale)(output.expand(shape), held.targets))


class _Run:
    """A rung under way. What it draws at random (dropout) depends on the seed and its steps."""

    def __init__(self, task: TrainingTask, data: TaskData, seed: int, rate: float) -> None:
        self._task, self._device = task, data.train.inputs.device
        self._model = build_model(task, data, seed).to(self._device)
        self._model.train()
        self._rate = rate
        self._optimizer = build_optimizer(task, self._model, rate)
        self._batches = Batches(data.train, task.batch_size, seed)
        self._pass = iter(self._batches)
        self._function = loss_function(task.loss, task.loss_scale)
        self._losses: list[float] = []
        self._fate: Fate = "alive"
        self._seconds = 0.0
        self._tails: dict[int, Tail] = {}
        self._aside = 0
        self._random = _random_state(self._device)

    def advance(self, steps: int) -> None:
        """Go on at the constant rate until so many steps are taken."""
        began = time.perf_counter()
        _set_random_state(self._device, self._random)
        self._fate = self._train(self._losses, [self._rate] * (steps - len(self._losses)))
        self._random = _random_state(self._device)
        if self._fate == "alive" and not self._lives():
            self._fate = "dead"
        self._seconds += time.perf_counter() - began

    def finish(self, steps: int, held: Split) -> None:
        """Let the rate fall to 0 by a line of stairs, look at the rows held back, and come back."""
        began = time.perf_counter()
        losses, rows = self._losses.copy(), np.empty(0)
        stair = ceil(steps / _STAIRS)
        rates = [self._rate * (steps - step + step % stair) / steps for step in range(steps)]
        with self._on_trial():
            fate = self._train(losses, rates)
            if fate == "alive" and not gets_no_gradient(self._model.parameters()):
                batch = self._task.batch_size or len(held)
                rows = evaluate_rows(self._task, self._model, held, at_once=batch)[1]
        taken = np.asarray(losses[len(self._losses) :])
        self._tails[len(self._losses)] = Tail(taken, np.asarray(rates[: taken.size]), rows)
        self._seconds += time.perf_counter() - began

    def _lives(self) -> bool:
        """Whether weights get a gradient, or will again: momentum may move them back."""
        parameters = list(self._model.parameters())
        if not gets_no_gradient(parameters):
            return True
        with self._on_trial():
            for _ in range(_REVIVAL):
                kept = [p.detach().clone() for p in parameters if p.ndim > 1]
                self._aside += 1
                if self._train(self._losses.copy(), [self._rate]) != "alive":
                    return False
                if not gets_no_gradient(parameters):
                    return True
                if all(map(torch.equal, kept, (p for p in parameters if p.ndim > 1))):
                    return False
        return False

    @contextmanager
    def _on_trial(self) -> Iterator[None]:
        """What is done inside is undone at the end."""
        weights = copy.deepcopy(self._model.state_dict())
        state = copy.deepcopy(self._optimizer.state_dict())
        place = self._batches.state_dict()
        _set_random_state(self._device, self._random)
        yield
        self._model.load_state_dict(weights)
        self._optimizer.load_state_dict(state)
        self._batches.load_state_dict(place)
        self._pass = iter(self._batches)

    def _train(self, losses: list[float], rates: list[float]) -> Fate:
        """A step at each of the rates; the losses before them join those that are there."""
        pending: list[Tensor] = []
        fate: Fate = "alive"
        for number, rate in enumerate(rates, start=1):
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            inputs, targets = self._next_batch()
            self._optimizer.zero_grad()
            loss = self._function(self._model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._optimizer.step()
            pending.append(loss.detach())
            full = len(pending) >= (1 if self._device.type == "cpu" else _CHUNK)
            if full or number == len(rates):
                fate = _read(pending, losses)
                pending = []
            if fate != "alive":
                break
        return fate

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        batch = next(self._pass, None)
        if batch is None:
            self._pass = iter(self._batches)
            batch = next(self._pass)
        return batch

    def probe(self) -> Probe:
        """What it has shown so far."""
        return Probe(
            np.asarray(self._losses), self._fate, self._seconds, dict(self._tails), self._aside
        )


def _read(pending: list[Tensor], losses: list[float]) -> Fate:
    """Add losses to those that are known, up to the first with which there is no hope."""
    for loss in torch.stack(pending).tolist():
        losses.append(loss)
        if hopeless(losses):
            return "diverged"
    return "alive"


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def _probes(runs: dict[int, _Run]) -> dict[int, Probe]:
    return {rung: run.probe() for rung, run in runs.items()}
