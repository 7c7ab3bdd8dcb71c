"""A replayed loss curve as one figure: windows, fits, p-values, decisions."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from lrsearch.engine.recorded import Replay
from lrsearch.errors import InvalidArgumentError, MissingPackageError
from lrsearch.stats.convergence import LARGEST_ROBUST_RATE
from lrsearch.stats.exponential import fit_exponential
from lrsearch.stats.line import fit_line
from lrsearch.stats.series import FloatArray
from lrsearch.windows import WindowStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Losses that span more than this are drawn on a logarithmic axis.
_DECADES = 30.0
# The search gets a panel of its own where the curve is this many times longer.
_ZOOM = 2.5
_LABELS = 12
_CLOSE = 0.03  # of the axis: labels nearer than this would cover each other
_SHADES = {"searching": ("#fde9c9", "#fbdca8"), "training": ("#dcebf7", "#c6def1")}
_LINES = {"accept": "#1a7f37", "restart": "#c0392b", "stop": "#c0392b", "decay": "#8250df"}
_WAIT = "#57606a"
_FIT_POINTS = 400
_TITLE_WIDTH = 130
_DOTS = 200  # a longer curve is a line without dots


def draw_replay(replay: Replay, *, title: str = "") -> Figure:
    """Draw the curve, its windows and, on every look of the search, the two fits that it compares.

    The line is dashed, the exponential solid; the last look is drawn strongly, those before it
    faintly. Orange windows search (F-test), blue ones train (plateau test). A vertical line at a
    window's end tells the decision: green accepts, red restarts, violet decays, grey waits.

    Args:
        replay: of a curve.
        title: above the figure.

    Raises:
        MissingPackageError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            "a figure needs matplotlib: pip install 'lrsearch[plots]'"
        ) from error

    steps = np.asarray(replay.curve.steps, dtype=np.float64)
    losses = np.asarray(replay.curve.losses, dtype=np.float64)
    reach = _search_reach(replay, float(steps[0]))
    two = steps[-1] - steps[0] > _ZOOM * (reach - steps[0])
    figure = Figure(figsize=(11.0, 8.5 if two else 5.5), layout="constrained")
    panels = list(figure.subplots(2 if two else 1, 1, squeeze=False)[:, 0])
    if two:
        inside = steps <= reach
        looks = [window for window in replay.windows if window.stop <= reach]
        _draw(panels[0], replay, steps[inside], losses[inside], looks, fits=True)
        panels[0].set_title("the search", loc="left", fontsize=10)
        panels[1].set_title("the whole curve", loc="left", fontsize=10)
    _draw(panels[-1], replay, steps, losses, replay.windows, fits=not two)
    panels[-1].set_xlabel("gradient step")
    if title:
        lines = [fill(line, _TITLE_WIDTH) for line in title.splitlines()]
        figure.suptitle("\n".join(lines), fontsize=11)
    return figure


def save_replay(replay: Replay, path: str | Path, *, title: str = "") -> None:
    """Write the figure as PNG, or as what the file's suffix says.

    Raises:
        MissingPackageError: if matplotlib is not installed.
        ValueError: if the file cannot be written.
    """
    figure = draw_replay(replay, title=title)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib does not know
        reason = " ".join(str(error).split())[:200]
        raise InvalidArgumentError(f"cannot write the figure {str(path)!r}: {reason}") from error


def _search_reach(replay: Replay, start: float) -> float:
    """Step up to which the search is shown, with a margin."""
    ends = [float(window.stop) for window in replay.search] or [start + replay.needed]
    return start + 1.15 * (max(ends) - start)


def _draw(
    axes: Axes,
    replay: Replay,
    steps: FloatArray,
    losses: FloatArray,
    windows: list[WindowStats],
    *,
    fits: bool,
) -> None:
    finite = np.isfinite(losses)
    axes.plot(steps[finite], losses[finite], color="#24292f", linewidth=0.7, alpha=0.7)
    if finite.sum() <= _DOTS:
        axes.plot(steps[finite], losses[finite], ".", color="#24292f", markersize=3)
    if _spans_decades(losses[finite]):
        axes.set_yscale("log")
    end = max([float(steps[-1]), *(float(window.stop) for window in windows)])
    span = max(end - float(steps[0]), 1.0)
    axes.set_xlim(steps[0] - 0.01 * span, end + 0.02 * span)
    axes.set_ylabel("loss")
    low, high = axes.get_ylim()
    _shade(axes, windows)
    if fits:
        searched = [window for window in windows if window.phase == "searching"]
        for window in searched:
            _draw_fits(axes, replay, window, strong=window is searched[-1])
    axes.set_ylim(low, high)  # an extrapolating fit shall not squeeze the curve
    _label(axes, windows, span, waits=fits)
    if fits and axes.get_legend_handles_labels()[0]:
        # Above the axes, where no loss is.
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=9, frameon=False
        )


def _shade(axes: Axes, windows: list[WindowStats]) -> None:
    """One band per window; the looks of one window share it."""
    last = {window.start: window for window in windows}
    for number, window in enumerate(last.values()):
        color = _SHADES[window.phase][number % 2]
        axes.axvspan(window.start, window.stop, color=color, linewidth=0, zorder=0)


def _draw_fits(axes: Axes, replay: Replay, window: WindowStats, *, strong: bool) -> None:
    at = np.asarray(replay.curve.steps)
    inside = (at >= window.start) & (at < window.stop)
    losses = np.asarray(replay.curve.losses, dtype=np.float64)[inside]
    if losses.size < 4 or not np.all(np.isfinite(losses)):
        return
    places = at[inside].astype(np.float64)
    robust = replay.settings.mode == "robust"
    if robust:  # which leaves out the first loss
        losses, places = losses[1:], places[1:]
    # The fits count losses, the axis counts steps.
    x = np.linspace(0.0, losses.size - 1.0, _FIT_POINTS)
    shown = np.interp(x, np.arange(losses.size), places)
    decay = fit_exponential(losses, largest_rate=LARGEST_ROBUST_RATE if robust else np.inf)
    line = fit_line(losses)
    ink, width = (1.0, 2.0) if strong else (0.4, 1.2)
    # An empty name stays out of the legend.
    axes.plot(
        shown,
        line.predict(x),
        "--",
        color="#0969da",
        linewidth=width,
        alpha=ink,
        label=f"line, SSE {line.sse:.3g}" if strong else "",
    )
    axes.plot(
        shown,
        decay.predict(x),
        "-",
        color="#d1242f",
        linewidth=width,
        alpha=ink,
        label=f"exponential, SSE {decay.sse:.3g}" if strong else "",
    )


def _label(axes: Axes, windows: list[WindowStats], span: float, *, waits: bool) -> None:
    """Decisions first, then, if wanted, waiting windows where there is room."""
    left = axes.get_xlim()[0]
    taken: list[float] = []
    for window in sorted(windows, key=lambda each: each.decision == "continue"):
        waiting = window.decision == "continue"
        color = _LINES.get(window.decision, _WAIT)
        axes.axvline(window.stop, color=color, linewidth=0.5 if waiting else 1.4)
        crowded = any(abs(window.stop - other) < _CLOSE * span for other in taken)
        if len(taken) >= _LABELS or crowded or (waiting and not waits):
            continue
        taken.append(window.stop)
        at_edge = window.stop - left < _CLOSE * span
        axes.annotate(
            _words(window),
            (window.stop, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(4 if at_edge else -3, 0),
            textcoords="offset points",
            rotation=90,
            ha="left" if at_edge else "right",
            va="top",
            fontsize=9,
            color=color,
            bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.8},
        )


def _words(window: WindowStats) -> str:
    kinds = {"continue": "wait", "decay": "would decay"}
    kind = kinds.get(window.decision, window.decision)
    tested = np.isfinite(window.t_statistic)
    return f"{kind}: {window.reason}" + (f", p = {window.pvalue:.2g}" if tested else "")


def _spans_decades(losses: FloatArray) -> bool:
    return bool(losses.size and losses.min() > 0.0 and losses.max() > _DECADES * losses.min())
