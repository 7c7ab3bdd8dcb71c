"""Numbers in, panels out: what the figures of a training, a study and a comparison show."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from lrsearch.controllers.replay import level_of, replay
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.figures.curve import JudgedCurve, loss_figure, training_figure
from lrsearch.figures.description import Figure, Panel, range_of, spans_decades
from lrsearch.figures.study import StudyPoints, TriedRate, comparison_figure, ladder_figure

RNG = np.random.default_rng(3)
SETTINGS = ExpTestSettings(total_steps=6000)
DECAY = 0.3 + 2.0 * np.exp(-np.arange(6000) / 400.0) + 0.05 * RNG.standard_normal(6000)


def judged(losses: np.ndarray, **options: object) -> JudgedCurve:
    windows = replay(SETTINGS, losses, lr=0.04)
    return JudgedCurve(
        np.arange(len(losses), dtype=np.float64),
        losses,
        windows,
        [level_of(window, windows, SETTINGS) for window in windows],
        "robust",
        **options,  # type: ignore[arg-type]
    )


def named(panel: Panel, name: str) -> np.ndarray:
    (series,) = [each for each in panel.series if each.name == name]
    return series.y


def test_a_long_curve_is_an_envelope_that_loses_no_spike() -> None:
    losses = DECAY.copy()
    losses[4321] = 50.0
    whole = loss_figure(judged(losses)).panels[-1]
    (area,) = whole.areas
    assert area.high.max() == 50.0
    assert area.low.min() == losses.min()
    assert np.all(area.low <= named(whole, "mean loss"))
    assert np.all(named(whole, "mean loss") <= area.high)
    assert len(area.x) == 500
    assert whole.y_range is not None
    assert whole.y_range[0] < losses.min() < 50.0 < whole.y_range[1]


def test_losses_near_the_largest_float_have_a_mean() -> None:
    losses = np.full(5000, 1e308)
    (panel,) = loss_figure(JudgedCurve(np.arange(5000.0), losses, [], [], "robust")).panels
    assert named(panel, "mean loss") == pytest.approx(losses[:500])


def test_every_window_is_a_band_and_every_look_a_mark() -> None:
    curve = judged(DECAY)
    whole = loss_figure(curve).panels[-1]
    assert [band.start for band in whole.bands] == sorted({w.start for w in curve.windows})
    assert sorted(mark.x for mark in whole.marks) == sorted(w.stop for w in curve.windows)
    (accepted,) = [w for w in curve.windows if w.decision == "accept"]
    (told,) = [m.words for m in whole.marks if m.words.startswith("accept")]
    assert told == f"accept: {accepted.reason}, p = {accepted.pvalue:.2g}"


@pytest.mark.parametrize(("carried_out", "word"), [(True, "decay"), (False, "would decay")])
def test_a_decay_is_told_as_done_only_where_it_was(carried_out: bool, word: str) -> None:
    whole = loss_figure(judged(DECAY, carried_out=carried_out)).panels[-1]
    told = {mark.words.partition(":")[0] for mark in whole.marks}
    assert word in told
    assert told <= {"", "accept", "restart", word}


def test_a_training_shows_each_pvalue_its_level_and_the_rate() -> None:
    curve = judged(DECAY, rates=[(0.0, 0.04), (3000.0, 0.01), (5999.0, 0.01)])
    figure = training_figure(curve, title="one\ntwo")
    *_, pvalues, rate = figure.panels
    tested = [w for w in curve.windows if np.isfinite(w.pvalue)]
    shown = {
        (x, y)
        for each in pvalues.series
        if each.marker != "none"
        for x, y in zip(each.x, each.y, strict=True)
    }
    assert shown == {(w.last_step, max(w.pvalue, 1e-16)) for w in tested}
    levels = named(pvalues, "level of the test")
    assert list(levels[::3]) == [
        level for w, level in zip(curve.windows, curve.levels, strict=True) if w in tested
    ]
    assert pvalues.y_log
    assert list(rate.series[0].y) == [0.04, 0.01, 0.01]
    assert rate.x_range == pvalues.x_range
    assert rate.x_label == "gradient step"


@pytest.mark.parametrize("losses", [[1.0], [nan], [2.0, inf], [-1.0, -2.0, -1.5], [0.0] * 5000])
def test_any_losses_can_be_described(losses: list[float]) -> None:
    curve = JudgedCurve(np.arange(float(len(losses))), np.array(losses), [], [], "robust")
    assert len(training_figure(curve).panels) == 1


LADDER = StudyPoints(
    "exptest",
    0,
    [
        TriedRate(0, 1.0, "pruned", 60, "flat"),
        TriedRate(1, 0.33, "failed", 7, "RuntimeError: out of memory, and a long story behind it"),
        TriedRate(2, 0.1089, "complete", 1000, "accepted: decay", 0.2, 0.96),
    ],
    lr=0.1089,
    value=0.96,
    val_loss=0.2,
)
GRID = StudyPoints(
    "grid",
    0,
    [
        TriedRate(0, 10.0, "pruned", 30, "diverged"),
        TriedRate(1, 0.1, "complete", 1000, "", 0.25, 0.95),
        TriedRate(2, 0.001, "complete", 1000, "", 9.0, 0.2),
    ],
    lr=0.1,
    value=0.95,
    val_loss=0.25,
)


def test_a_ladder_shows_rate_outcome_reason_and_steps_of_each_trial() -> None:
    figure = ladder_figure(LADDER, start=1.0, start_name="bound")
    rates, steps = figure.panels
    by_name = {each.name: (list(each.x), list(each.y)) for each in rates.series}
    assert by_name == {
        "trained to the end": ([2.0], [0.1089]),
        "ended early": ([0.0], [1.0]),
        "failed": ([1.0], [0.33]),
    }
    assert len({each.marker for each in rates.series}) == 3  # told apart without colors too
    assert rates.y_log
    assert [note.words for note in rates.notes][::2] == ["flat", "accepted: decay"]
    assert len(rates.notes[1].words) == 24
    assert [(mark.x, mark.words) for mark in rates.marks] == [(2.0, "chosen")]
    assert [level.words for level in rates.levels] == ["bound"]
    (bars,) = steps.bars
    assert list(bars.heights) == [60, 7, 1000]
    assert list(bars.words) == ["60", "7", "1,000"]


def test_validation_losses_have_a_panel_where_there_are_several() -> None:
    labels = [panel.y_label for panel in ladder_figure(GRID, start=1.0, start_name="bound").panels]
    assert labels == ["learning rate", "validation loss", "steps spent"]


def test_a_comparison_shows_all_rates_both_answers_and_the_steps() -> None:
    figure = comparison_figure([LADDER, GRID], metric="accuracy", better="higher")
    metric, loss, steps = figure.panels
    assert metric.y_label == "test accuracy (higher is better)"
    by_name = {each.name: each for each in metric.series}
    assert list(by_name["grid"].x) == [0.001, 0.1]
    assert list(by_name["grid"].y) == [0.2, 0.95]
    assert list(by_name["exptest: its choice"].x) == [0.1089]
    assert list(by_name["grid: its choice"].y) == [0.95]
    assert list(by_name["exptest: ended early"].x) == [1.0, 0.33]
    assert metric.y_range is not None
    assert by_name["grid: ended early"].y[0] == metric.y_range[0]
    ended = loss.series[[each.name for each in metric.series].index("grid: ended early")]
    assert loss.y_range is not None
    assert ended.y[0] == loss.y_range[1]  # a loss is worse the larger it is
    assert [mark.x for mark in metric.marks] == [0.1089]
    assert metric.x_log
    assert {each.name for each in loss.series} == {""}
    assert list(steps.bars[0].heights) == [1067, 2030]
    assert list(steps.bars[0].words) == ["1,067 (53%)", "2,030 (100%)"]
    assert [word for _, word in steps.x_ticks] == ["exptest", "grid"]


def test_a_study_without_an_answer_can_be_drawn_too() -> None:
    lost = StudyPoints("exptest", 0, LADDER.trials[:1], nan, nan, nan)
    assert ladder_figure(lost, start=1.0, start_name="bound").panels[0].marks == []
    figure = comparison_figure([lost], metric="mse", better="lower")
    assert not any("choice" in each.name for each in figure.panels[0].series)


def test_panels_lie_below_each_other_inside_the_page() -> None:
    figure = Figure("a\nb", [Panel("x"), Panel("y", x_label="step", height=3.0), Panel("z")])
    boxes = figure.boxes()
    edges = [edge for _, bottom, _, height in boxes for edge in (bottom + height, bottom)]
    assert edges == sorted(edges, reverse=True)
    assert 0.0 < edges[-1] < edges[0] < 1.0


def test_ranges_hold_their_values() -> None:
    assert range_of([nan, inf]) is None
    assert range_of([2.0]) == pytest.approx((1.9, 2.1))
    assert range_of([0.0]) == (-1.0, 1.0)
    low, high = range_of([1e-3, 10.0, -4.0], log=True) or (0.0, 0.0)
    assert 0.0 < low < 1e-3 < 10.0 < high
    assert spans_decades([1.0, 100.0])
    assert not spans_decades([-1.0, 100.0])
    assert not spans_decades([nan])


def test_what_diverged_was_not_tested_and_shows_no_fit() -> None:
    losses = np.exp(np.arange(6.0) * 5.0)
    windows = replay(SETTINGS, losses, lr=4.0)
    assert [window.reason for window in windows] == ["diverged"]
    curve = JudgedCurve(np.arange(6.0), losses, windows, [0.025], "robust", rates=[(0.0, 4.0)])
    figure = training_figure(curve)
    assert [panel.y_label for panel in figure.panels] == ["loss", "learning rate"]
    assert len(figure.panels[0].series) == 1
