"""What a training tells its tracker, held back until it is safe: each point once, after any kill.

A training that goes on from a checkpoint tells the steps since that checkpoint again. So nothing is
passed on that a checkpoint could not tell again word for word: an entry keeps the time at which it
was told, goes into the checkpoint, and is passed on when the *next* checkpoint has it too. Then
even a damaged file, in whose place the one before it is taken, makes no double: a store that gets
the same key, time, step and value twice keeps one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lrsearch.tracking import StepTracker

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_Metrics: TypeAlias = tuple[dict[str, float], int, int]  # values, step, milliseconds since 1970
_Losses: TypeAlias = tuple[Tensor, int, float]  # of shape (steps,), first step, rate


def milliseconds() -> int:
    """The time, as trackers count it."""
    return time.time_ns() // 1_000_000


class Outbox:
    """A ``StepTracker`` before another one; a part of the checkpoint.

    The losses of single steps are told anew from the first on when a training goes on, since the
    tracker may make its table from what this process tells; it keeps one of each step.

    Args:
        tracker: what it is meant for.
    """

    def __init__(self, tracker: StepTracker) -> None:
        self._tracker = tracker
        self._kept: list[_Metrics | _Losses] = []  # by the last checkpoint
        self._new: list[_Metrics | _Losses] = []
        self._told: list[_Losses] = []
        self._open = False

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, timestamp: int | None = None
    ) -> None:
        """Hold values back, with their time."""
        at = milliseconds() if timestamp is None else timestamp
        values = {key: float(value) for key, value in metrics.items()}
        self._hold((values, int(step), at))

    def log_steps(self, losses: ArrayLike, start: int, lr: float) -> None:
        """Hold losses back."""
        values = torch.from_numpy(np.array(losses, dtype=np.float64))
        self._hold((values, int(start), float(lr)))

    def release(self) -> None:
        """A checkpoint is safe: pass on what the one before it had too."""
        for entry in self._kept:
            self._pass_on(entry)
        self._kept, self._new = self._new, []

    def drain(self) -> None:
        """The training is over: pass everything on, and hold nothing back from now on."""
        self._open = True
        self.release()
        self.release()

    def state_dict(self) -> dict[str, Any]:
        """What is held back, and the losses of all steps."""
        return {
            "kept": list(self._kept),
            "new": list(self._new),
            "told": list(self._told),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold back what that training did, and tell its steps' losses once more."""
        self._kept, self._new = list(state["kept"]), list(state["new"])
        self._told = []
        for losses in state["told"]:
            self._pass_on(losses)

    def _hold(self, entry: _Metrics | _Losses) -> None:
        if self._open:
            self._pass_on(entry)
        else:
            self._new.append(entry)

    def _pass_on(self, entry: Any) -> None:
        first, step, last = entry
        if isinstance(first, Tensor):
            self._told.append((first, step, last))
            self._tracker.log_steps(first.numpy(), step, last)
        else:
            self._tracker.log_metrics(first, step, timestamp=last)
