"""The figures that a search leaves with its tracker.

A picture on the run of each trial that ExpTest or LipschitzLR drove, and on each study's; a page
that can be zoomed, with the study and its chosen trial, on the study's run alone, as each page
carries 4.8 MB of plotly's own code (a page that fetched it would stay empty without a network).
Without matplotlib or plotly a search simply leaves no figure.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from lrsearch.controllers.replay import level_of
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.result import SearchResult
from lrsearch.engine.start import Start
from lrsearch.errors import MissingPackageError
from lrsearch.figures import with_matplotlib, with_plotly
from lrsearch.figures.curve import JudgedCurve, training_figure
from lrsearch.figures.description import Figure
from lrsearch.figures.study import (
    Outcome,
    StudyPoints,
    TriedRate,
    comparison_figure,
    ladder_figure,
)
from lrsearch.stats.series import FloatArray
from lrsearch.tracking import RunTracker, StepTracker
from lrsearch.windows import WindowStats

LOSS, STUDY, COMPARISON = "figures/loss", "figures/study", "figures/comparison"
_OUTCOMES: Final[dict[str, Outcome]] = {"COMPLETE": "complete", "PRUNED": "pruned"}
_STARTS: Final = {"race": "winner of the race", "bound": "bound", "lipschitz": "1 / L"}

logger = logging.getLogger("lrsearch")


class KeptCurve:
    """Passes on what a training tells a tracker, and keeps the losses for a figure."""

    def __init__(self, tracker: StepTracker) -> None:
        self._tracker = tracker
        self._stretches: list[tuple[int, FloatArray, float]] = []

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, timestamp: int | None = None
    ) -> None:
        """Pass values on."""
        if timestamp is None:
            self._tracker.log_metrics(metrics, step)
        else:
            self._tracker.log_metrics(metrics, step, timestamp=timestamp)

    def log_steps(self, losses: ArrayLike, start: int, lr: float) -> None:
        """Pass losses on, and keep them."""
        self._tracker.log_steps(losses, start, lr)
        self._stretches.append((start, np.array(losses, dtype=np.float64), lr))

    def figure(
        self, windows: Sequence[WindowStats], settings: ExpTestSettings, title: str
    ) -> Figure | None:
        """The figure of the training so far; None if no loss is known."""
        if not self._stretches:
            return None
        steps = np.concatenate(
            [np.arange(start, start + len(losses)) for start, losses, _ in self._stretches]
        ).astype(np.float64)
        return training_figure(
            JudgedCurve(
                steps=steps,
                losses=np.concatenate([losses for _, losses, _ in self._stretches]),
                windows=windows,
                levels=[level_of(window, windows, settings) for window in windows],
                mode=settings.mode,
                rates=self._rates(float(steps[-1])),
            ),
            title=title,
        )

    def _rates(self, end: float) -> list[tuple[float, float]]:
        changes: list[tuple[float, float]] = []
        for start, _, lr in self._stretches:
            if not changes or changes[-1][1] != lr:
                changes.append((float(start), lr))
        return [*changes, (end, changes[-1][1])]


def log_study(run: RunTracker, result: SearchResult, start: Start, chosen: Figure | None) -> None:
    """Draw a study on its run.

    Args:
        run: of the study.
        result: what it found.
        start: where it began.
        chosen: figure of the trial that was chosen; None if there is none.
    """
    points = study_points(result)
    if not points.trials:
        return
    chose = f"chose lr = {result.lr:.3g}" if np.isfinite(result.lr) else "found no rate"
    title = (
        f"{result.task}, {result.method}, seed {result.seed}: {chose}\n"
        f"{result.steps:,} gradient steps in all; {result.stop_reason}"
    )
    figure = ladder_figure(points, start=start.rate, start_name=_STARTS[start.kind], title=title)
    log_picture(run, STUDY, figure)
    if chosen is not None:
        first, *rest = chosen.panels
        headed = replace(first, title=f"the chosen trial{': ' if first.title else ''}{first.title}")
        log_page(run, STUDY, Figure(title, [*figure.panels, headed, *rest]))


def log_comparison(run: RunTracker, results: Sequence[SearchResult]) -> None:
    """Draw methods side by side, as a picture and as a page."""
    first = results[0]
    better = "higher" if first.direction == "maximize" else "lower"
    seeds = sorted({result.seed for result in results})
    of = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    figure = comparison_figure(
        [study_points(result) for result in results],
        metric=first.metric,
        better=better,
        title=f"{first.task}: every rate that was tried, {of}",
    )
    log_picture(run, COMPARISON, figure)
    log_page(run, COMPARISON, figure)


def log_picture(run: RunTracker, name: str, figure: Figure) -> None:
    """Store a figure as an image, if matplotlib is there."""
    _log(run, name, figure, with_matplotlib.draw)


def log_page(run: RunTracker, name: str, figure: Figure) -> None:
    """Store a figure as a page, if plotly is there."""
    _log(run, name, figure, with_plotly.draw)


def study_points(result: SearchResult) -> StudyPoints:
    """A study as a figure sees it."""
    trials = [
        TriedRate(
            number=int(row["number"]),
            lr=float(row["lr"]),
            outcome=_OUTCOMES.get(str(row["state"]), "failed"),
            steps=int(row["steps"]),
            reason=str(row["reason"]),
            val_loss=_number(row["val_loss"]),
            value=_number(row["test_metric"]),
        )
        for row in result.trials.to_dict("records")
        if row["lr"] is not None and np.isfinite(row["lr"])
    ]
    return StudyPoints(result.method, result.seed, trials, result.lr, result.value, result.val_loss)


def _log(run: RunTracker, name: str, figure: Figure, draw: Any) -> None:
    try:
        run.log_figure(name, draw(figure))
    except MissingPackageError:
        return
    except Exception:  # a training must not be lost for its picture
        logger.warning("the figure %s could not be drawn", name, exc_info=True)


def _number(value: Any) -> float:
    return nan if value is None else float(value)
