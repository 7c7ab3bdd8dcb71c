"""Gradient steps to a target that was fixed in advance, and their ratio between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from experiments.harness.resampling import FloatArray, bootstrap_interval


def steps_to(course: Sequence[Mapping[Any, Any]], target: float, budget: int) -> float:
    """Gradient steps after which a validation loss at or below the target was met.

    Args:
        course: improvements in the order in which they came, with "step" and "val_loss".
        target: validation loss.
        budget: what was met later does not count.

    Returns:
        The steps; infinity if it was not reached.
    """
    for row in course:
        if row["val_loss"] <= target:
            return float(row["step"]) if row["step"] <= budget else inf
    return inf


def best_after(course: Sequence[Mapping[Any, Any]], at: FloatArray) -> FloatArray:
    """Smallest validation loss after each number of steps, shape of ``at``; NaN before any."""
    steps = np.array([row["step"] for row in course], dtype=np.float64)
    losses = np.array([np.nan, *(row["val_loss"] for row in course)], dtype=np.float64)
    return losses[np.searchsorted(steps, at, side="right")]


def paired_ratio(first: FloatArray, second: FloatArray, budget: int) -> dict[str, float]:
    """Geometric mean of first / second over paired seeds, with a bootstrap interval.

    A search that has not reached the target counts as the whole budget, which is less than it
    would have needed.

    Args:
        first, second: steps to the target, shape (tasks, seeds), paired; infinity: not reached.
        budget: steps of a search.

    Returns:
        "ratio", "low" and "high" (95 %, bootstrap over tasks, then seeds).
    """
    logs = np.log(np.minimum(first, budget) / np.minimum(second, budget))
    low, high = np.exp(bootstrap_interval(logs))
    return {"ratio": float(np.exp(logs.mean())), "low": float(low), "high": float(high)}
