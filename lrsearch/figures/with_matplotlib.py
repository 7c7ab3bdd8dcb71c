"""Draws a description with matplotlib, without its global state."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from lrsearch.errors import MissingPackageError
from lrsearch.figures.description import WIDTH, Figure, Mark, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Drawing

# A logarithmic axis shorter than this has its ticks in plain numbers.
_FEW_DECADES: Final = 300.0
_LINES: Final = {"none": "none", "solid": "-", "dashed": "--", "steps": "-"}
_MARKERS: Final = {
    "none": "none",
    "dot": ".",
    "circle": "o",
    "cross": "x",
    "triangle": "^",
    "square": "s",
    "star": "*",
}


def draw(figure: Figure) -> Drawing:
    """Draw a figure; each panel becomes one of its axes.

    Raises:
        MissingPackageError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as NewDrawing
    except ImportError as error:
        raise MissingPackageError(
            "a figure needs matplotlib: pip install 'lrsearch[plots]'"
        ) from error
    drawing = _with_margins(NewDrawing)(figsize=(WIDTH, figure.height))
    for panel, box in zip(figure.panels, figure.boxes(), strict=True):
        # The boxes leave room for all words: no layout has to be searched for, which is slow.
        _draw(drawing.add_axes(box), panel)
    if figure.title:
        top = 1.0 - 0.08 / figure.height
        drawing.suptitle(figure.title, fontsize=11, x=0.5, y=top, va="top")
    return drawing


@cache
def _with_margins(plain: type[Drawing]) -> type[Drawing]:
    class DrawingWithMargins(plain):  # type: ignore[misc, valid-type]  # loaded when first drawn
        """Has its margins: looking for them, as a tracker asks for, would draw it twice."""

        def savefig(self, *arguments: Any, **options: Any) -> None:
            super().savefig(*arguments, **{**options, "bbox_inches": None})

    return DrawingWithMargins


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.x_log:
        axes.set_xscale("log")
    if panel.y_log:
        axes.set_yscale("log")
    # First, as the library's own search for limits overflows where losses do.
    if panel.x_range:
        axes.set_xlim(*panel.x_range)
    if panel.y_range:
        axes.set_ylim(*panel.y_range)
    for band in panel.bands:
        axes.axvspan(band.start, band.stop, color=band.color, linewidth=0, zorder=0)
    for area in panel.areas:
        axes.fill_between(
            area.x, area.low, area.high, color=area.color, linewidth=0, label=area.name or None
        )
    for bars in panel.bars:
        # A single column would be as wide as the axes, were its width not bounded by a range.
        drawn = axes.bar(bars.x, bars.heights, color=list(bars.colors), width=0.6)
        axes.bar_label(drawn, labels=list(bars.words), fontsize=8, padding=1)
    for series in panel.series:
        options: dict[str, Any] = {"drawstyle": "steps-post"} if series.line == "steps" else {}
        axes.plot(
            series.x,
            series.y,
            linestyle=_LINES[series.line],
            marker=_MARKERS[series.marker],
            color=series.color,
            linewidth=series.width,
            markersize=series.size,
            alpha=series.ink,
            label=series.name,  # an empty name stays out of the legend
            **options,
        )
    for level in panel.levels:
        axes.axhline(level.y, color=level.color, linewidth=0.9, linestyle="--")
    for note in panel.notes:
        axes.annotate(
            note.words,
            (note.x, note.y),
            xytext=(6, 3),
            textcoords="offset points",
            fontsize=8,
            va="bottom",
            color=note.color,
        )
    _finish(axes, panel)


def _finish(axes: Axes, panel: Panel) -> None:
    for axis, log, ends in (
        (axes.xaxis, panel.x_log, panel.x_range),
        (axes.yaxis, panel.y_log, panel.y_range),
    ):
        if log and ends is not None and ends[1] < _FEW_DECADES * ends[0]:
            _plain_ticks(axis)
    if panel.x_ticks:
        axes.set_xticks([place for place, _ in panel.x_ticks], [word for _, word in panel.x_ticks])
    axes.set_ylabel(panel.y_label)
    axes.set_xlabel(panel.x_label)
    axes.set_title(panel.title, loc="left", fontsize=10)
    for mark in panel.marks:
        _mark(axes, mark)
    for level in panel.levels:
        axes.annotate(
            level.words,
            (1.0, level.y),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color=level.color,
        )
    names = axes.get_legend_handles_labels()[0]
    if names:
        # Above the axes, where no loss is.
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(names),
            fontsize=9,
            frameon=False,
            borderaxespad=0.1,
        )


def _plain_ticks(axis: Axis) -> None:
    """1, 2 and 5 of each decade, in plain numbers: powers of ten alone would be too few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _mark(axes: Axes, mark: Mark) -> None:
    axes.axvline(mark.x, color=mark.color, linewidth=mark.width)
    if not mark.words:
        return
    right = mark.side == "right"
    axes.annotate(
        mark.words,
        (mark.x, 0.98),
        xycoords=("data", "axes fraction"),
        xytext=(4 if right else -3, 0),
        textcoords="offset points",
        rotation=90,
        ha="left" if right else "right",
        va="top",
        fontsize=9,
        color=mark.color,
        bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.8},
    )
