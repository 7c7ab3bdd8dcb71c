"""What the state machine decides about a recorded loss curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrsearch.controllers.exptest import (
    Decision,
    ExpTestSettings,
    ExpTestState,
    correct_window,
    diverged,
    due_step,
    is_complete,
    judge,
    open_window,
)
from lrsearch.stats.divergence import first_divergence


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
    state = ExpTestState()
    broken = first_divergence(values)
    end = values.size if broken is None else broken
    while True:
        step = due_step(settings, state)
        if step > end:
            break
        if state.raw_length is None:
            first = float(values[0])
            state = open_window(settings, state, initial_loss=first, lr=lr, step=step)
        elif state.length is None:
            state = correct_window(settings, state, correction=1.0)
        elif not is_complete(settings, state, step):
            break  # cut by the budget
        else:
            state, decision = judge(settings, state, values[:step], lr)
            if decision.kind == "accept" and broken is not None:
                break  # it passed, and diverged later
            if decision.kind != "continue":
                return decision
    if broken is not None:
        return diverged(settings, state, values[state.start : broken + 1], lr)[1]
    return None
