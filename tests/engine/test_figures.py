"""The figure of a replay: what it shows, and that it needs no display."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.figures import draw_replay, save_replay
from lrsearch.engine.recorded import Replay, replay_curve
from lrsearch.errors import InvalidArgumentError, MissingPackageError
from lrsearch.tracking import RecordedCurve

RNG = np.random.default_rng(1)
NOISE = 0.02 * RNG.standard_normal(2000)


def replayed(losses: np.ndarray, **options: object) -> Replay:
    curve = RecordedCurve(range(len(losses)), losses.tolist())
    return replay_curve(curve, ExpTestSettings(**options), lr=0.04)


FLAT = 2.3 + NOISE[:400]
DECAY = 0.3 + 2.0 * np.exp(-np.arange(2000) / 15.0) + NOISE
BROKEN = np.array([*DECAY[:100], np.nan])
SHORT = DECAY[:10]


@pytest.fixture(autouse=True)
def _matplotlib() -> None:
    pytest.importorskip("matplotlib")


def test_a_rejected_search_shows_every_look_with_both_fits() -> None:
    figure = draw_replay(replayed(FLAT), title="a curve")
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert any(text.startswith("restart: flat, p = ") for text in texts)
    assert sum(text.startswith("wait: no decay shown yet") for text in texts) == 2
    styles = [line.get_linestyle() for line in axes.lines if len(line.get_xdata()) == 400]
    assert styles.count("--") == 3
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text().split(",")[0] for text in legend.get_texts()] == ["line", "exponential"]
    assert axes.get_yscale() == "linear"
    assert figure.get_suptitle() == "a curve"


def test_a_short_search_in_a_long_curve_has_a_panel_of_its_own() -> None:
    search, whole = draw_replay(replayed(DECAY)).axes
    assert search.get_xlim()[1] < 100
    assert whole.get_xlim()[1] > 1999
    assert any(text.get_text().startswith("accept: decay") for text in whole.texts)
    assert search.get_legend() is not None
    assert whole.get_legend() is None


def test_the_drawn_exponential_is_the_one_that_was_tested() -> None:
    """A first loss far off is no decay in robust mode, and the only one in paper mode."""
    losses = FLAT.copy()
    losses[0] = 8.0
    for mode in ("robust", "paper"):
        replay = replayed(losses, mode=mode)
        legend = draw_replay(replay).axes[0].get_legend()
        assert legend is not None
        told = float(legend.get_texts()[1].get_text().split()[-1])
        assert told == pytest.approx(replay.search[-1].sse_exponential, rel=1e-2)


def test_losses_over_decades_get_a_logarithmic_axis() -> None:
    assert draw_replay(replayed(np.geomspace(1e3, 1e-3, 300))).axes[-1].get_yscale() == "log"


@pytest.mark.parametrize("losses", [BROKEN, SHORT, SHORT[:1], np.array([np.nan]), -FLAT])
def test_every_curve_can_be_drawn(losses: np.ndarray, tmp_path: Path) -> None:
    save_replay(replayed(losses), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_no_global_state_of_matplotlib_is_touched() -> None:
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"x\.nonsense"):
        save_replay(replayed(SHORT), tmp_path / "x.nonsense")


def test_without_matplotlib_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'lrsearch\[plots\]'"):
        draw_replay(replayed(SHORT))


def test_a_page_can_be_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    save_replay(replayed(FLAT), tmp_path / "x.html", title="a curve")
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "restart: flat" in page
    assert "would decay" not in page
