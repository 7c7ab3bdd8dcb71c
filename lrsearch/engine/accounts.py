"""What a trial has cost so far, over all processes that worked on it, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lrsearch.training.loop import Evaluation, TrainingOutcome
from lrsearch.training.outbox import milliseconds


@dataclass(frozen=True, slots=True)
class End:
    """How a training ended. What is recorded after it follows from this alone.

    Attributes:
        at: when, in milliseconds since 1970.
        seconds: what the trial took.
        outcome: what it gave; None if it was pruned.
        pruned: why it was pruned, in the words of the exception.
    """

    at: int
    seconds: float
    outcome: TrainingOutcome | None
    pruned: str = ""


class Accounts:
    """Steps and seconds of a trial; a part of its checkpoint."""

    def __init__(self) -> None:
        self.steps = 0
        self.end: End | None = None
        self._before = 0.0
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far, those of processes before this one included."""
        if self.end is not None:
            return self.end.seconds
        return self._before + time.perf_counter() - self._began

    def close(self, outcome: TrainingOutcome | None, pruned: str = "") -> None:
        """The training is over."""
        self.end = End(milliseconds(), self.seconds, outcome, pruned)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        end = None if self.end is None else asdict(self.end)
        return {"steps": self.steps, "seconds": self.seconds, "end": end}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``; the time between the two processes costs nothing."""
        self.steps, self._before = int(state["steps"]), float(state["seconds"])
        self._began = time.perf_counter()
        self.end = None if state["end"] is None else _end(state["end"])


def _end(state: Mapping[str, Any]) -> End:
    outcome = state["outcome"]
    if outcome is None:
        return End(**state)
    evaluations = {name: Evaluation(**outcome[name]) for name in ("train", "validation", "test")}
    return End(**{**state, "outcome": TrainingOutcome(**{**outcome, **evaluations})})
