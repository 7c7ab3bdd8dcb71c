"""What the state machine decides about a recorded loss curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrsearch.controllers.exptest import (
    Decision,
    ExpTestState,
    correct_window,
    diverged,
    due_step,
    is_complete,
    judge,
    open_window,
)
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.stats.divergence import first_divergence
from lrsearch.windows import WindowStats

_REJECTED = ("restart", "stop")


def search_verdict(
    settings: ExpTestSettings, losses: Sequence[float] | NDArray[Any], *, lr: float
) -> Decision | None:
    """The verdict on a rate from the curve that it gave: "accept", "restart", or None if too early.

    The same machine that drives training is walked along the curve, point by point, with window
    correction 1 (a curve alone does not tell the gradients' sums).

    Args:
        settings: alpha and mode count; ``total_steps`` bounds the windows.
        losses: shape (points,) in the order of the steps [loss].
        lr: learning rate that gave them.
    """
    values = np.asarray(losses, dtype=np.float64)
    for decision in _walk(settings, values, lr):
        # A rate that passed and diverged later is rejected after all.
        if decision.kind == "accept" and first_divergence(values) is None:
            return decision
        if decision.kind in _REJECTED:
            return decision
    return None


def replay(
    settings: ExpTestSettings, losses: Sequence[float] | NDArray[Any], *, lr: float
) -> list[WindowStats]:
    """Every look at a window of a recorded curve, up to its first restart or its end.

    The walk ends at a restart: the curve cannot show what a lower rate would have given. A decay
    is only told, for the losses were recorded at a rate of their own: the walk goes on over the
    same losses, with windows planned for the lower rate. Losses after the last complete window are
    not judged.

    Args:
        settings: of the machine.
        losses: shape (points,) in the order of the steps [loss].
        lr: learning rate of the first step.
    """
    values = np.asarray(losses, dtype=np.float64)
    decisions = _walk(settings, values, lr)
    return [decision.window for decision in decisions if decision.window is not None]


def first_look(settings: ExpTestSettings, initial_loss: float, *, lr: float) -> int:
    """Losses that the first look at a curve needs."""
    opened = open_window(settings, ExpTestState(), initial_loss=initial_loss, lr=lr, step=0)
    length = correct_window(settings, opened, correction=1.0).length or 0
    return max(length, settings.floor)


def _walk(settings: ExpTestSettings, values: NDArray[np.float64], lr: float) -> Iterator[Decision]:
    """The machine's decisions along a curve, point by point, with window correction 1."""
    state = ExpTestState()
    broken = first_divergence(values)
    end = values.size if broken is None else broken
    while (step := due_step(settings, state)) <= end:
        rate = lr * state.factor
        if state.raw_length is None:
            first = float(values[0])
            state = open_window(settings, state, initial_loss=first, lr=rate, step=step)
        elif state.length is None:
            state = correct_window(settings, state, correction=1.0)
        elif not is_complete(settings, state, step):
            break  # cut by the budget
        else:
            state, decision = judge(settings, state, values[state.start : step], rate)
            yield decision
            if decision.kind in _REJECTED:
                return
    if broken is not None:
        seen = values[state.start : broken + 1]
        yield diverged(settings, state, seen, lr * state.factor)[1]


def level_of(
    window: WindowStats, windows: Sequence[WindowStats], settings: ExpTestSettings
) -> float:
    """Level at which a look was tested; the looks at one window share alpha.

    Args:
        window: the look.
        windows: all looks of the run.
        settings: of the machine.
    """
    earlier = [each for each in windows if each.start == window.start and each.index < window.index]
    return settings.level(len(earlier))
