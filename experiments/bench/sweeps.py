"""Range tests: a short run at an exponentially growing rate, and the rules that read its curve.

fastai's rules as in ``fastai.callback.schedule`` (2.x), restated; torch-lr-finder is run itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import chain, repeat
from math import nan
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.bench.courses import Course, PeerOutcome, failure, outcome, trained_at
from lrsearch import TaskData, TrainingTask
from lrsearch.training.batches import Batches
from lrsearch.training.loop import (
    build_model,
    loss_function,
    make_optimizer,
    rate_of,
    steps_per_epoch,
)

STEPS: Final = 100
LOWEST: Final = 1e-7
HIGHEST: Final = 10.0
_LEAST_STEPS: Final = 6  # fastai's least
_SMOOTHING: Final = 0.98
_GIVE_UP: Final = 4.0  # times the least smoothed loss

Curve = NDArray[np.float64]
Rule = Callable[[Curve, Curve, int], float]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The curve of a range test.

    Attributes:
        rates: of each step, shape (steps,).
        losses: smoothed, shape (steps,).
        planned: steps that it would have had, had it not been given up.
    """

    rates: Curve
    losses: Curve
    planned: int


def sweep_steps(task: TrainingTask, data: TaskData) -> int:
    """Steps of a range test: 100, and no more than a quarter of the task's own budget."""
    budget = steps_per_epoch(task, data) * task.epochs
    return max(_LEAST_STEPS, min(STEPS, budget // 4))


def range_sweep(task: TrainingTask, data: TaskData, seed: int) -> Sweep:
    """fastai's ``LRFinder``: 1e-7 to 10, losses smoothed by 0.98 and given up at 4 times the best.

    A loss that is not a number does not end it, as there.
    """
    planned = sweep_steps(task, data)
    model = build_model(task, data, seed)
    optimizer = make_optimizer(task.optimizer, list(model.parameters()), LOWEST)
    function = loss_function(task.loss, task.loss_scale)
    batches = chain.from_iterable(repeat(Batches(data.train, task.batch_size, seed)))
    rates, losses = [], []
    mean, least = 0.0, float("inf")
    for step in range(planned):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / planned)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = next(batches)
        loss = function(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = _SMOOTHING * mean + (1.0 - _SMOOTHING) * float(loss.detach())
        smooth = mean / (1.0 - _SMOOTHING ** (step + 1))
        rates.append(rate_of(optimizer))
        losses.append(smooth)
        least = min(least, smooth)
        if smooth > _GIVE_UP * least:
            break
    return Sweep(np.array(rates), np.array(losses), planned)


def suggested(sweep: Sweep, rule: Rule) -> float:
    """A rule's suggestion, as ``Learner.lr_find`` asks for it.

    The first tenth of the steps is left out, and the last 5 of 100; so is what follows a loss that
    is not a number.

    Raises:
        IndexError, ValueError: if too little is left for the rule, as fastai does.
    """
    kept = slice(sweep.planned // 10, len(sweep.losses) - _share(5, sweep.planned))
    rates, losses = sweep.rates[kept], sweep.losses[kept]
    lost = np.flatnonzero(np.isnan(losses))
    if lost.size:
        rates, losses = rates[: lost[0]], losses[: lost[0]]
    return rule(rates, losses, sweep.planned)


def _share(steps: int, planned: int) -> int:
    """What a number of steps of a whole range test is in one of ``planned`` steps."""
    return max(1, steps * planned // STEPS)


def valley(rates: Curve, losses: Curve, planned: int) -> float:
    """Half-way down the longest decrease: the longest strictly falling subsequence of losses.

    Of its length L, counted back from its end, two parts of a third are passed by half: the rate
    at ``end - L + floor(L / 3) + floor(L / 6)``.
    """
    lengths = np.ones(len(losses), dtype=np.int64)
    for at in range(1, len(losses)):
        higher = lengths[:at][losses[:at] > losses[at]]
        lengths[at] = 1 + higher.max(initial=0)
    end = int(lengths.argmax())
    length = int(lengths[end]) if end else 0
    return float(rates[end - length + int(length / 3) + int(length / 6)])


def slide(rates: Curve, losses: Curve, planned: int) -> float:
    """Where the slopes 15 of 100 steps apart differ by at most 0.005, sought from the right."""
    slopes = np.gradient(losses)
    right, left = -1, -1 - _share(15, planned)
    rate = rates[left]
    while left >= -len(losses) and abs(slopes[right] - slopes[left]) > 0.005:
        rate = rates[left]
        right, left = right - 1, left - 1
    return float(rate)


def minimum(rates: Curve, losses: Curve, planned: int) -> float:
    """A tenth of the rate at the least loss."""
    return float(rates[losses.argmin()]) / 10.0


def steep(rates: Curve, losses: Curve, planned: int) -> float:
    """Where the loss falls most steeply over the rate's logarithm."""
    return float(rates[(np.diff(losses) / np.diff(np.log(rates))).argmin()])


def run_fastai(rule: Rule, task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    """Sweep, then train from the first weights at the rate that the rule suggests."""
    sweep = range_sweep(task, data, seed)
    return _train_at(lambda: suggested(sweep, rule), len(sweep.losses), task, data, seed)


def run_lr_finder(package: Any, task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    """torch-lr-finder's sweep and its own suggestion; what it prints is dropped.

    Args:
        package: the module ``torch_lr_finder``.
        task, data, seed: what to train on, from which weights.
    """
    planned = sweep_steps(task, data)
    model = build_model(task, data, seed)
    finder = package.LRFinder(
        model,
        make_optimizer(task.optimizer, list(model.parameters()), LOWEST),
        loss_function(task.loss, task.loss_scale),
    )
    batches = package.TrainDataLoaderIter(Batches(data.train, task.batch_size, seed))
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        finder.range_test(batches, end_lr=HIGHEST, num_iter=planned)

    def suggestion() -> float:
        from matplotlib.figure import Figure

        skipped = {"skip_start": planned // 10, "skip_end": _share(5, planned)}
        with redirect_stdout(StringIO()):
            _, rate = finder.plot(ax=Figure().subplots(), suggest_lr=True, **skipped)
        return float(rate)

    return _train_at(suggestion, len(finder.history["loss"]), task, data, seed)


def _train_at(
    suggestion: Callable[[], float], swept: int, task: TrainingTask, data: TaskData, seed: int
) -> PeerOutcome:
    try:
        rate = suggestion()
    except Exception as error:  # whatever the rule raises is its result
        model = build_model(task, data, seed)
        return outcome(task, data, model, Course(0, failure(error)), lr=nan, extra_steps=swept)
    return trained_at(task, data, seed, rate, extra_steps=swept)
