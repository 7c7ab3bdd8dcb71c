"""Losses and rates on their way to a tracker: thinned out, never one call a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lrsearch.stats.series import FloatArray
from lrsearch.tracking import StepTracker

# A tracker's chart shows a few hundred points; more cost time and show nothing.
_POINTS = 1000
_STRIDE_WITHOUT_BUDGET = 10


class CurveLog:
    """Writes the loss curve of a run, and the rate where it changes.

    Every step's loss goes to the tracker's table. Its charts get about a thousand of them, and for
    each stretch (a window, or the steps between two checks of validation) the least, the largest
    and the mean loss, so that no spike falls through.

    Args:
        tracker: where to.
        total_steps: length of the run; None if not known.
    """

    def __init__(self, tracker: StepTracker, total_steps: int | None) -> None:
        self._tracker = tracker
        self._stride = (
            _STRIDE_WITHOUT_BUDGET if total_steps is None else max(1, total_steps // _POINTS)
        )
        self._next = 0
        self._written = 0
        self._broken = False
        self._rate: float | None = None

    def extend(self, losses: FloatArray, start: int, lr: float) -> None:
        """Write what is new.

        Args:
            losses: shape (steps,), the losses from ``start`` on; those written before are skipped.
            start: step of the first of them.
            lr: rate that gave them.
        """
        if lr != self._rate:
            if self._rate is not None and start > 0:
                self._tracker.log_metrics({"train/lr": self._rate}, step=start - 1)
            self._tracker.log_metrics({"train/lr": lr}, step=start)
            self._rate = lr
        end = start + len(losses)
        begin = max(start, self._written)
        if begin < end:
            self._write(losses[begin - start :], begin, lr)
            self._written = end
        while self._next < end:
            if self._next >= start:
                loss = float(losses[self._next - start])
                self._tracker.log_metrics({"train/loss": loss}, step=self._next)
            self._next += self._stride

    def state_dict(self) -> dict[str, Any]:
        """How far the curve is written; plain values."""
        return {
            "next": self._next,
            "written": self._written,
            "broken": self._broken,
            "rate": self._rate,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``: what was written then is not written again."""
        self._next, self._written = int(state["next"]), int(state["written"])
        self._broken, self._rate = bool(state["broken"]), state["rate"]

    def _write(self, losses: FloatArray, start: int, lr: float) -> None:
        self._tracker.log_steps(losses, start, lr)
        sound = np.isfinite(losses)
        if not self._broken and not sound.all():
            # Where it broke down must not fall between the thinned-out steps.
            self._broken = True
            first = int(np.argmin(sound))
            self._tracker.log_metrics({"train/loss": float(losses[first])}, step=start + first)
        finite = losses[sound]
        if finite.size:
            envelope = {
                "train/loss_min": float(finite.min()),
                "train/loss_max": float(finite.max()),
                "train/loss_mean": float(finite.mean()),
            }
            self._tracker.log_metrics(envelope, step=start + len(losses) - 1)
