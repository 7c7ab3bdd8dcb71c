"""Both libraries draw what is described: their own data are read back."""

from __future__ import annotations

import json
import re
import sys
from io import BytesIO

import numpy as np
import pytest

from lrsearch.errors import MissingPackageError
from lrsearch.figures import with_matplotlib, with_plotly
from lrsearch.figures.curve import JudgedCurve, loss_figure
from lrsearch.figures.description import (
    Area,
    Band,
    Bars,
    Figure,
    Level,
    Mark,
    Note,
    Panel,
    Series,
)

X = np.array([0.0, 1.0, 2.0])
FIGURE = Figure(
    "a title\nin two lines",
    [
        Panel(
            y_label="loss",
            title="above",
            series=[
                Series(X, np.array([1.0, 10.0, 100.0]), "#d1242f", "curve", line="dashed"),
                Series(
                    X,
                    np.array([2.0, np.nan, 4.0]),
                    "#0969da",
                    line="none",
                    marker="cross",
                    words=["a", "b", "c"],
                ),
            ],
            areas=[Area(X, X + 0.5, X + 5.0, "#c9ced6", "between")],
            bands=[Band(0.0, 1.0, "#fde9c9")],
            marks=[Mark(1.5, "#1a7f37", words="accept"), Mark(1.0, "#57606a")],
            levels=[Level(20.0, "bound")],
            notes=[Note(2.0, 100.0, "here")],
            y_log=True,
            y_range=(0.5, 200.0),
            x_range=(-1.0, 3.0),
        ),
        Panel(
            y_label="steps",
            x_label="method",
            bars=[Bars(X[:2], np.array([3.0, 5.0]), ["#d1242f", "#0969da"], ["three", "five"])],
            x_ticks=[(0.0, "exptest"), (1.0, "grid")],
        ),
    ],
)


def test_matplotlib_draws_the_description() -> None:
    pytest.importorskip("matplotlib")
    drawing = with_matplotlib.draw(FIGURE)
    assert drawing.get_suptitle() == FIGURE.title
    loss, steps = drawing.axes
    curve, points = loss.lines[:2]
    assert list(curve.get_ydata()) == [1.0, 10.0, 100.0]
    assert (curve.get_linestyle(), curve.get_color()) == ("--", "#d1242f")
    assert np.array_equal(np.asarray(points.get_ydata()), [2.0, np.nan, 4.0], equal_nan=True)
    assert (points.get_linestyle(), points.get_marker()) == ("None", "x")
    assert loss.get_yscale() == "log"
    assert loss.get_ylim() == (0.5, 200.0)
    assert loss.get_xlim() == (-1.0, 3.0)
    assert [text.get_text() for text in loss.texts] == ["here", "accept", "bound"]
    assert sorted(float(line.get_xdata()[0]) for line in loss.lines[3:]) == [1.0, 1.5]
    legend = loss.get_legend()
    assert legend is not None
    assert sorted(text.get_text() for text in legend.get_texts()) == ["between", "curve"]
    heights = [bar.get_height() for bar in steps.patches]  # type: ignore[attr-defined]
    assert heights == [3.0, 5.0]
    assert [label.get_text() for label in steps.get_xticklabels()] == ["exptest", "grid"]


def test_matplotlib_draws_once_whatever_a_tracker_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawing = with_matplotlib.draw(FIGURE)
    draws = []
    draw = type(drawing).draw
    monkeypatch.setattr(
        type(drawing), "draw", lambda self, *rest: (draws.append(1), draw(self, *rest))[1]
    )
    stream = BytesIO()
    drawing.savefig(stream, format="png", dpi=100, bbox_inches="tight")
    width, height = np.frombuffer(stream.getvalue()[16:24], dtype=">u4")
    assert (width, height) == (1100, round(100 * FIGURE.height))
    assert len(draws) == 1


def test_plotly_draws_the_description() -> None:
    pytest.importorskip("plotly")
    page = with_plotly.draw(FIGURE)
    data = [trace.to_plotly_json() for trace in page.data]
    layout = page.layout.to_plotly_json()
    traces = {trace["name"]: trace for trace in data if trace.get("name")}
    assert list(traces["curve"]["y"]) == [1.0, 10.0, 100.0]
    assert traces["curve"]["line"]["dash"] == "dash"
    assert list(traces["between"]["y"]) == list(X + 5.0)
    (points,) = [trace for trace in data if trace.get("mode") == "markers"]
    assert points["text"] == ["a", "b", "c"]
    assert layout["yaxis"]["type"] == "log"
    assert layout["yaxis"]["range"] == pytest.approx(np.log10([0.5, 200.0]))
    (bars,) = [trace for trace in data if trace["type"] == "bar"]
    assert (bars["xaxis"], bars["yaxis"]) == ("x2", "y2")
    assert list(bars["y"]) == [3.0, 5.0]
    assert layout["xaxis2"]["ticktext"] == ["exptest", "grid"]
    bands = [shape for shape in layout["shapes"] if shape["type"] == "rect"]
    assert [(band["x0"], band["x1"]) for band in bands] == [(0.0, 1.0)]
    assert {(s["x0"], s["x1"]) for s in layout["shapes"] if s["type"] == "line"} == {
        (1.5, 1.5),
        (1.0, 1.0),
        (0, 1),
    }
    words = {each["text"]: each for each in layout["annotations"]}
    assert set(words) == {"a title<br>in two lines", "above", "accept", "bound", "here"}
    # Annotations count decades on a logarithmic axis.
    assert words["here"]["y"] == pytest.approx(2.0)
    for axis, box in zip(("yaxis", "yaxis2"), FIGURE.boxes(), strict=True):
        assert layout[axis]["domain"] == pytest.approx([box[1], box[1] + box[3]])


def test_a_page_needs_no_network_and_holds_valid_json() -> None:
    pytest.importorskip("plotly")
    page = with_plotly.draw(FIGURE).to_html(include_plotlyjs=True)
    assert not re.findall(r"<script[^>]*\bsrc=", page)
    bare = with_plotly.draw(FIGURE).to_json()
    assert json.loads(bare, parse_constant=lambda word: pytest.fail(word))
    assert len(bare) < 20_000


@pytest.mark.parametrize("losses", [[1e308] * 9, [1e-300, 1e308], [-1e308, 1e308], [0.0, 5e-324]])
def test_numbers_at_the_edge_of_floats_are_drawn(losses: list[float]) -> None:
    pytest.importorskip("matplotlib")
    curve = JudgedCurve(np.arange(float(len(losses))), np.array(losses), [], [], "robust")
    drawing = with_matplotlib.draw(loss_figure(curve))
    drawing.savefig(BytesIO(), format="png")
    assert np.all(np.isfinite(drawing.axes[0].get_ylim()))


@pytest.mark.parametrize(
    ("module", "draw"),
    [("matplotlib.figure", with_matplotlib.draw), ("plotly.graph_objects", with_plotly.draw)],
)
def test_a_missing_library_is_named_with_its_remedy(
    module: str, draw: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'lrsearch\[plots\]'"):
        draw(FIGURE)  # type: ignore[operator]
