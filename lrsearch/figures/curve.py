"""The figure of one training: loss, windows, the fits that a test compares, decisions, rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from lrsearch.figures.description import (
    Area,
    Band,
    Figure,
    Mark,
    Marker,
    Panel,
    Series,
    range_of,
    spans_decades,
)
from lrsearch.stats.convergence import LARGEST_ROBUST_RATE, Mode
from lrsearch.stats.exponential import fit_exponential
from lrsearch.stats.line import fit_line
from lrsearch.stats.series import FloatArray
from lrsearch.windows import WindowStats

# The search gets a panel of its own where the curve is this many times longer.
_ZOOM: Final = 2.5
_LABELS: Final = 12
_CLOSE: Final = 0.03  # of the axis: labels nearer than this would cover each other
_SHADES: Final = {"searching": ("#fde9c9", "#fbdca8"), "training": ("#dcebf7", "#c6def1")}
_COLORS: Final = {"accept": "#1a7f37", "restart": "#c0392b", "stop": "#c0392b", "decay": "#8250df"}
_WAIT, _INK, _GREY = "#57606a", "#24292f", "#c9ced6"
_FIT_POINTS: Final = 400
_DOTS: Final = 200  # a longer curve is a line without dots
_RAW: Final = 2000  # and a longer one still is an envelope with a mean
_STRETCHES: Final = 500
_SMALLEST_PVALUE: Final = 1e-16


@dataclass(frozen=True, slots=True)
class JudgedCurve:
    """A loss curve and what was decided along it.

    Attributes:
        steps, losses: shape (steps,), at least one; a loss that is not finite is a gap.
        windows: every look, in gradient steps.
        levels: of the test of each look.
        mode: of ExpTest.
        needed: gradient steps that the first look needs.
        rates: step and learning rate wherever the rate changes, and at the end.
        carried_out: whether the decisions were; if not, a decay only would have been.
    """

    steps: FloatArray
    losses: FloatArray
    windows: Sequence[WindowStats]
    levels: Sequence[float]
    mode: Mode
    needed: int = 0
    rates: Sequence[tuple[float, float]] = ()
    carried_out: bool = True


def loss_figure(curve: JudgedCurve, *, title: str = "") -> Figure:
    """The curve, its windows and, on every look of the search, the two fits that it compares.

    The line is dashed, the exponential solid; the last look is drawn strongly, those before it
    faintly. Orange windows search (F-test), blue ones train (plateau test). A vertical line at a
    window's end tells the decision: green accepts, red restarts, violet decays, grey waits. A curve
    much longer than its search shows that in a panel of its own.
    """
    steps, first = curve.steps, float(curve.steps[0])
    ends = [float(window.stop) for window in curve.windows if window.phase == "searching"]
    reach = first + 1.15 * (max(ends or [first + curve.needed]) - first)
    two = bool(ends or curve.needed) and steps[-1] - first > _ZOOM * (reach - first)
    panels = []
    if two:
        inside = steps <= reach
        looks = [window for window in curve.windows if window.stop <= reach]
        panels.append(
            _panel(curve, steps[inside], curve.losses[inside], looks, "the search", fits=True)
        )
    panels.append(
        _panel(
            curve,
            steps,
            curve.losses,
            curve.windows,
            "the whole curve" if two else "",
            fits=not two,
        )
    )
    panels[-1] = replace(panels[-1], x_label="gradient step")
    return Figure(title, panels)


def training_figure(curve: JudgedCurve, *, title: str = "") -> Figure:
    """``loss_figure``, and below it the p-value of each look and the rate, by step."""
    panels = list(loss_figure(curve).panels)
    ends = panels[-1].x_range
    tested = [
        (window, level)
        for window, level in zip(curve.windows, curve.levels, strict=True)
        if np.isfinite(window.t_statistic) and np.isfinite(window.pvalue)
    ]
    if tested:
        panels.append(_pvalues(curve, tested, ends))
    if curve.rates:
        panels.append(_rates(curve.rates, ends))
    return Figure(title, panels)


def _panel(
    curve: JudgedCurve,
    steps: FloatArray,
    losses: FloatArray,
    windows: Sequence[WindowStats],
    title: str,
    *,
    fits: bool,
) -> Panel:
    finite = np.isfinite(losses)
    areas, series = _shape(steps[finite], losses[finite])
    end = max([float(steps[-1]), *(float(window.stop) for window in windows)])
    span = max(end - float(steps[0]), 1.0)
    left = float(steps[0]) - 0.01 * span
    if fits:
        searched = [window for window in windows if window.phase == "searching"]
        for window in searched:
            series += _fits(curve, window, strong=window is searched[-1])
    log = spans_decades(losses)
    return Panel(
        y_label="loss",
        title=title,
        areas=areas,
        series=series,
        bands=_bands(windows),
        marks=_marks(curve, windows, left, span, waits=fits),
        x_range=(left, end + 0.02 * span),
        # Of the losses alone: an extrapolating fit shall not squeeze the curve.
        y_range=range_of(losses, log=log),
        y_log=log,
        height=3.3,
    )


def _shape(steps: FloatArray, losses: FloatArray) -> tuple[list[Area], list[Series]]:
    """The curve itself, or, of a long one, its envelope and its mean."""
    if len(steps) <= _RAW:
        dots: Marker = "dot" if len(steps) <= _DOTS else "none"
        return [], [Series(steps, losses, _INK, width=0.7, ink=0.7, marker=dots)]
    cuts = np.linspace(0, len(steps), _STRETCHES, endpoint=False).astype(np.intp)
    counts = np.diff(np.append(cuts, len(steps)))
    low, high = np.minimum.reduceat(losses, cuts), np.maximum.reduceat(losses, cuts)
    # By their scale: the losses of a run that blows up would overflow a plain sum.
    scale = max(float(np.abs(losses).max()), 1e-300)
    mean = np.add.reduceat(losses / scale, cuts) / counts * scale
    middle = steps[np.minimum(cuts + counts // 2, len(steps) - 1)]
    area = Area(middle, low, high, _GREY, "least to largest loss")
    return [area], [Series(middle, mean, _INK, "mean loss", width=0.9)]


def _bands(windows: Sequence[WindowStats]) -> list[Band]:
    """One band per window; the looks of one window share it."""
    last = {window.start: window for window in windows}
    return [
        Band(window.start, window.stop, _SHADES[window.phase][number % 2])
        for number, window in enumerate(last.values())
    ]


def _fits(curve: JudgedCurve, window: WindowStats, *, strong: bool) -> list[Series]:
    inside = (curve.steps >= window.start) & (curve.steps < window.stop)
    losses, places = curve.losses[inside], curve.steps[inside]
    if losses.size < 4 or not np.all(np.isfinite(losses)):
        return []
    if not np.isfinite(window.t_statistic):  # it diverged: nothing was fitted
        return []
    robust = curve.mode == "robust"
    if robust:  # which leaves out the first loss
        losses, places = losses[1:], places[1:]
    # The fits count losses, the axis counts steps.
    x = np.linspace(0.0, losses.size - 1.0, _FIT_POINTS)
    shown = np.interp(x, np.arange(losses.size), places)
    decay = fit_exponential(losses, largest_rate=LARGEST_ROBUST_RATE if robust else np.inf)
    line = fit_line(losses)
    ink, width = (1.0, 2.0) if strong else (0.4, 1.2)
    return [
        Series(
            shown,
            line.predict(x),
            "#0969da",
            f"line, SSE {line.sse:.3g}" if strong else "",
            line="dashed",
            width=width,
            ink=ink,
        ),
        Series(
            shown,
            decay.predict(x),
            "#d1242f",
            f"exponential, SSE {decay.sse:.3g}" if strong else "",
            width=width,
            ink=ink,
        ),
    ]


def _marks(
    curve: JudgedCurve,
    windows: Sequence[WindowStats],
    left: float,
    span: float,
    *,
    waits: bool,
) -> list[Mark]:
    """Decisions first, then, if wanted, waiting windows; words where there is room."""
    marks, taken = [], list[float]()
    for window in sorted(windows, key=lambda each: each.decision == "continue"):
        waiting = window.decision == "continue"
        crowded = any(abs(window.stop - other) < _CLOSE * span for other in taken)
        words = ""
        if len(taken) < _LABELS and not crowded and (waits or not waiting):
            taken.append(window.stop)
            words = _words(curve, window)
        marks.append(
            Mark(
                window.stop,
                _COLORS.get(window.decision, _WAIT),
                width=0.5 if waiting else 1.4,
                words=words,
                side="right" if window.stop - left < _CLOSE * span else "left",
            )
        )
    return marks


def _words(curve: JudgedCurve, window: WindowStats) -> str:
    kinds = {"continue": "wait", "decay": "decay" if curve.carried_out else "would decay"}
    kind = kinds.get(window.decision, window.decision)
    tested = np.isfinite(window.t_statistic)
    return f"{kind}: {window.reason}" + (f", p = {window.pvalue:.2g}" if tested else "")


def _pvalues(
    curve: JudgedCurve,
    tested: Sequence[tuple[WindowStats, float]],
    ends: tuple[float, float] | None,
) -> Panel:
    """One point a look, its color the decision; the level of its test as a line up to it."""
    names = {"accept": "accept", "restart": "reject", "stop": "stop", "decay": "decay"}
    series = []
    for decision in dict.fromkeys(window.decision for window, _ in tested):
        shown = [window for window, _ in tested if window.decision == decision]
        series.append(
            Series(
                np.array([float(window.last_step) for window in shown]),
                np.array([max(window.pvalue, _SMALLEST_PVALUE) for window in shown]),
                _COLORS.get(decision, _WAIT),
                names.get(decision, "go on"),
                line="none",
                marker="circle",
                size=4.0,
                words=[_words(curve, window) for window in shown],
            )
        )
    stops = [float(window.stop) for window, _ in tested]
    begins = [
        max(float(window.start), before)
        for (window, _), before in zip(tested, [-np.inf, *stops], strict=False)
    ]
    x = np.array([each for pair in zip(begins, stops, strict=True) for each in (*pair, np.nan)])
    y = np.array([each for _, level in tested for each in (level, level, np.nan)])
    series.append(Series(x, y, _INK, "level of the test", width=1.2))
    drawn = np.concatenate([each.y for each in series])
    return Panel(
        y_label="p-value",
        series=series,
        x_range=ends,
        y_range=range_of(drawn, log=True),
        y_log=True,
        height=1.3,
    )


def _rates(rates: Sequence[tuple[float, float]], ends: tuple[float, float] | None) -> Panel:
    steps, values = np.asarray(rates, dtype=np.float64).T
    # A single decade or less has no tick on a logarithmic axis.
    log = bool(values.min() > 0.0 and values.max() >= 10.0 * values.min())
    return Panel(
        y_label="learning rate",
        x_label="gradient step",
        series=[Series(steps, values, "#8250df", line="steps", width=1.4)],
        x_range=ends,
        y_range=range_of(values, log=log),
        y_log=log,
        height=1.1,
    )
