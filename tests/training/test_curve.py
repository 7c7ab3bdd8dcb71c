"""What a tracker is told of a loss curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lrsearch.tracking import NullRun
from lrsearch.training.curve import CurveLog


class Told(NullRun):
    """Keeps the losses it is told."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.steps: list[Any] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if "train/loss" in metrics:
            self.losses[step] = metrics["train/loss"]

    def log_steps(self, losses: Any, start: int, lr: float) -> None:
        self.steps += list(losses)


def test_the_step_that_broke_down_is_told_between_the_thinned_out_ones() -> None:
    told = Told()
    curve = CurveLog(told, total_steps=100_000)
    losses = np.ones(250)
    losses[137] = np.inf
    losses[138:] = np.nan
    curve.extend(losses, 0, 0.1)
    assert sorted(told.losses) == [0, 100, 137, 200]
    assert told.losses[137] == np.inf
    np.testing.assert_array_equal(told.steps, losses)
