"""Draws a description with plotly: a page that can be zoomed and asked."""

from __future__ import annotations

from math import log10
from typing import Any, Final

from lrsearch.errors import MissingPackageError
from lrsearch.figures.description import Figure, Panel

_INCH: Final = 96.0  # pixels
_DASHES: Final = {"none": "solid", "solid": "solid", "dashed": "dash", "steps": "solid"}
_SYMBOLS: Final = {
    "none": "circle",
    "dot": "circle",
    "circle": "circle",
    "cross": "x-thin-open",
    "triangle": "triangle-up",
    "square": "square",
    "star": "star",
}


def draw(figure: Figure) -> Any:
    """Draw a figure as a ``plotly.graph_objects.Figure``; panel k has the axes xk and yk.

    Raises:
        MissingPackageError: if plotly is not installed.
    """
    try:
        from plotly.graph_objects import Figure as Drawing
    except ImportError as error:
        raise MissingPackageError(
            "a page with figures needs plotly: pip install 'lrsearch[plots]'"
        ) from error
    height = figure.height * _INCH
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "template": "plotly_white",
        "height": height,
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "hovermode": "closest",
        "shapes": [],
        "annotations": [
            {
                "text": figure.title.replace("\n", "<br>"),
                "font": {"size": 15},
                "x": 0.5,
                "y": 1.0 - 4.0 / height,
                "xref": "paper",
                "yref": "paper",
                "yanchor": "top",
                "showarrow": False,
            }
        ],
    }
    for number, (panel, box) in enumerate(zip(figure.panels, figure.boxes(), strict=True), 1):
        _add(data, layout, panel, box, number)
    return Drawing({"data": data, "layout": layout})


def _add(
    data: list[dict[str, Any]],
    layout: dict[str, Any],
    panel: Panel,
    box: tuple[float, float, float, float],
    number: int,
) -> None:
    left, bottom, width, height = box
    name = "" if number == 1 else str(number)
    axes = {"xaxis": f"x{name}", "yaxis": f"y{name}"}
    layout[f"xaxis{name}"] = {
        "domain": [left, left + width],
        "anchor": f"y{name}",
        "title": {"text": panel.x_label, "standoff": 2},
        "showline": True,
        **_axis(panel.x_log, panel.x_range),
        **(
            {"tickvals": [x for x, _ in panel.x_ticks], "ticktext": [w for _, w in panel.x_ticks]}
            if panel.x_ticks
            else {}
        ),
    }
    layout[f"yaxis{name}"] = {
        "domain": [bottom, bottom + height],
        "anchor": f"x{name}",
        "title": {"text": panel.y_label, "standoff": 4},
        "showline": True,
        **_axis(panel.y_log, panel.y_range),
    }
    legend = "legend" if number == 1 else f"legend{number}"
    layout[legend] = {
        "x": left + width,
        "y": bottom + height,
        "xanchor": "right",
        "yanchor": "bottom",
        "orientation": "h",
    }
    data += [{**trace, **axes, "legend": legend} for trace in _traces(panel)]
    layout["shapes"] += _shapes(panel, name)
    layout["annotations"] += _annotations(panel, name, (left, bottom + height))


def _axis(log: bool, ends: tuple[float, float] | None) -> dict[str, Any]:
    axis: dict[str, Any] = {"type": "log" if log else "linear"}
    if log:
        axis["exponentformat"] = "power"
    if ends is not None:
        axis["range"] = [log10(end) for end in ends] if log else list(ends)
    return axis


def _traces(panel: Panel) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for area in panel.areas:
        edge = {"type": "scatter", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        traces.append({**edge, "x": area.x, "y": area.low, "showlegend": False})
        traces.append(
            {
                **edge,
                "x": area.x,
                "y": area.high,
                "fill": "tonexty",
                "fillcolor": area.color,
                "name": area.name,
                "showlegend": bool(area.name),
            }
        )
    for bars in panel.bars:
        traces.append(
            {
                "type": "bar",
                "x": bars.x,
                "y": bars.heights,
                "width": 0.6,
                "marker": {"color": list(bars.colors)},
                "text": list(bars.words),
                "textposition": "outside",
                "cliponaxis": False,
                "showlegend": False,
            }
        )
    for series in panel.series:
        modes = [
            *(["lines"] if series.line != "none" else []),
            *(["markers"] if series.marker != "none" else []),
        ]
        trace: dict[str, Any] = {
            "type": "scatter",
            "x": series.x,
            "y": series.y,
            "mode": "+".join(modes) or "none",
            "name": series.name,
            "showlegend": bool(series.name),
            "opacity": series.ink,
            "line": {
                "color": series.color,
                "width": series.width,
                "dash": _DASHES[series.line],
                "shape": "hv" if series.line == "steps" else "linear",
            },
            "marker": {
                "color": series.color,
                "size": series.size + 1.0,
                "symbol": _SYMBOLS[series.marker],
                "line": {"width": 2.0 if series.marker == "cross" else 0.0, "color": series.color},
            },
        }
        if series.words:
            trace |= {"text": list(series.words), "hovertemplate": "%{text}<extra></extra>"}
        traces.append(trace)
    return traces


def _shapes(panel: Panel, name: str) -> list[dict[str, Any]]:
    upright = {"xref": f"x{name}", "yref": f"y{name} domain", "y0": 0, "y1": 1}
    bands = [
        {
            **upright,
            "type": "rect",
            "x0": band.start,
            "x1": band.stop,
            "fillcolor": band.color,
            "line": {"width": 0},
            "layer": "below",
        }
        for band in panel.bands
    ]
    marks = [
        {
            **upright,
            "type": "line",
            "x0": mark.x,
            "x1": mark.x,
            "line": {"color": mark.color, "width": mark.width},
        }
        for mark in panel.marks
    ]
    levels = [
        {
            "type": "line",
            "xref": f"x{name} domain",
            "yref": f"y{name}",
            "x0": 0,
            "x1": 1,
            "y0": level.y,
            "y1": level.y,
            "line": {"color": level.color, "width": 1, "dash": "dash"},
        }
        for level in panel.levels
    ]
    return bands + marks + levels


def _annotations(panel: Panel, name: str, corner: tuple[float, float]) -> list[dict[str, Any]]:
    words: list[dict[str, Any]] = []
    if panel.title:
        words.append(
            {
                "text": panel.title,
                "x": corner[0],
                "y": corner[1],
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "font": {"size": 13},
            }
        )
    for mark in panel.marks:
        if mark.words:
            words.append(
                {
                    "text": mark.words,
                    "x": _place(mark.x, panel.x_log),
                    "y": 0.98,
                    "xref": f"x{name}",
                    "yref": f"y{name} domain",
                    "textangle": -90,
                    "xanchor": "left" if mark.side == "right" else "right",
                    "yanchor": "top",
                    "font": {"size": 11, "color": mark.color},
                    "bgcolor": "rgba(255,255,255,0.8)",
                    "borderpad": 1,
                }
            )
    for level in panel.levels:
        words.append(
            {
                "text": level.words,
                "x": 1,
                "y": _place(level.y, panel.y_log),
                "xref": f"x{name} domain",
                "yref": f"y{name}",
                "xanchor": "right",
                "yanchor": "bottom",
                "font": {"size": 11, "color": level.color},
            }
        )
    for note in panel.notes:
        words.append(
            {
                "text": note.words,
                "x": _place(note.x, panel.x_log),
                "y": _place(note.y, panel.y_log),
                "xref": f"x{name}",
                "yref": f"y{name}",
                "xanchor": "left",
                "yanchor": "bottom",
                "xshift": 5,
                "font": {"size": 11, "color": note.color},
            }
        )
    return [{"showarrow": False, **each} for each in words]


def _place(value: float, log: bool) -> float:
    """Annotations, unlike shapes, count the logarithm on such an axis."""
    return log10(value) if log else value
