"""What a figure shows, whoever draws it: panels below each other, in plain numbers and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike

from lrsearch.stats.series import FloatArray

Line = Literal["none", "solid", "dashed", "steps"]
Marker = Literal["none", "dot", "circle", "cross", "triangle", "square", "star"]

# Values that span more than this are drawn on a logarithmic axis.
_DECADES: Final = 30.0
# Inches.
WIDTH: Final = 11.0
_LEFT, _RIGHT, _BOTTOM, _ABOVE, _BELOW, _TITLE_LINE = 0.9, 0.2, 0.15, 0.38, 0.3, 0.24
_AXIS_LABEL: Final = 0.2
# No axis reaches further: its ends and ticks would overflow.
_LARGEST: Final = 1e120


@dataclass(frozen=True, slots=True)
class Series:
    """Points, a line through them, or both.

    Attributes:
        x, y: shape (points,); a NaN breaks the line.
        color: as "#rrggbb".
        name: in the legend; "" stays out of it.
        line, width: how the points are joined ("steps": each holds until the next).
        marker, size: how each point is drawn.
        ink: from 0 (invisible) to 1.
        words: shape (points,) or empty: what is to be said of each point, where the drawing can
            be asked.
    """

    x: FloatArray
    y: FloatArray
    color: str
    name: str = ""
    line: Line = "solid"
    width: float = 1.0
    marker: Marker = "none"
    size: float = 3.0
    ink: float = 1.0
    words: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Area:
    """What lies between two curves, shape (points,) each."""

    x: FloatArray
    low: FloatArray
    high: FloatArray
    color: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """Columns from 0 up, shape (columns,) each, with a word on top."""

    x: FloatArray
    heights: FloatArray
    colors: Sequence[str]
    words: Sequence[str]


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of the x axis, shaded behind everything."""

    start: float
    stop: float
    color: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line, with words along it on its left or right side ("" for none)."""

    x: float
    color: str
    width: float = 1.0
    words: str = ""
    side: Literal["left", "right"] = "left"


@dataclass(frozen=True, slots=True)
class Level:
    """A dashed horizontal line, with words at its right end."""

    y: float
    words: str
    color: str = "#57606a"


@dataclass(frozen=True, slots=True)
class Note:
    """Words beside a point."""

    x: float
    y: float
    words: str
    color: str = "#24292f"


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        y_label, x_label, title: words; "" for none.
        series, areas, bars, bands, marks, levels, notes: what is in it.
        x_log, y_log: whether an axis is logarithmic.
        x_range, y_range: ends of an axis; None leaves it to the library.
        x_ticks: places and words on the x axis; empty leaves them to the library.
        height: of the axes [inch].
    """

    y_label: str
    x_label: str = ""
    title: str = ""
    series: Sequence[Series] = ()
    areas: Sequence[Area] = ()
    bars: Sequence[Bars] = ()
    bands: Sequence[Band] = ()
    marks: Sequence[Mark] = ()
    levels: Sequence[Level] = ()
    notes: Sequence[Note] = ()
    x_log: bool = False
    y_log: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_ticks: Sequence[tuple[float, str]] = ()
    height: float = 2.0


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels below each other, and a title of one or more lines."""

    title: str
    panels: Sequence[Panel]

    @property
    def title_height(self) -> float:
        """Room for the title [inch]."""
        return 0.1 + _TITLE_LINE * len(self.title.splitlines())

    @property
    def height(self) -> float:
        """Of the whole figure [inch]."""
        return self.title_height + _BOTTOM + sum(_outer(panel) for panel in self.panels)

    def boxes(self) -> list[tuple[float, float, float, float]]:
        """Left, bottom, width and height of each panel's axes, as shares of the figure."""
        boxes, top = [], self.height - self.title_height
        for panel in self.panels:
            bottom = top - _ABOVE - panel.height
            boxes.append(
                (
                    _LEFT / WIDTH,
                    bottom / self.height,
                    1.0 - (_LEFT + _RIGHT) / WIDTH,
                    panel.height / self.height,
                )
            )
            top -= _outer(panel)
        return boxes


def _outer(panel: Panel) -> float:
    return _ABOVE + panel.height + _BELOW + (_AXIS_LABEL if panel.x_label else 0.0)


def spans_decades(values: ArrayLike) -> bool:
    """Whether values are all positive and so far apart that they need a logarithmic axis."""
    finite = finite_of(values)
    return bool(finite.size and finite.min() > 0.0 and finite.max() / _DECADES > finite.min())


def range_of(values: ArrayLike, *, log: bool = False) -> tuple[float, float] | None:
    """Ends of an axis that holds finite values with a small margin; None if there are none."""
    finite = finite_of(values)
    if log:
        finite = finite[finite > 0.0]
    if not finite.size:
        return None
    smallest = 1.0 / _LARGEST if log else -_LARGEST
    low, high = (float(each) for each in np.clip((finite.min(), finite.max()), smallest, _LARGEST))
    if log:
        margin = 10.0 ** (0.05 * (log10(high) - log10(low))) if high > low else 1.5
        return low / margin, high * margin
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def finite_of(values: ArrayLike) -> FloatArray:
    """The finite ones, as floats."""
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]
