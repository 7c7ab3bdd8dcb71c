"""Curves as they are drawn: a plain moving average, mean and standard error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.harness.figures import draw_curves, moving_average

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402


def plain(curve, window):
    width = min(max(window, 1), len(curve))
    return np.array([np.mean(curve[i : i + width]) for i in range(len(curve) - width + 1)])


def axes():
    return Figure().subplots()


def curves(runs, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (2.0 * np.exp(-np.arange(steps) / 50) + rng.uniform(0.1, 0.3, steps)).astype(np.float32)
        for _ in range(runs)
    ]


@settings(deadline=None)
@given(
    curve=st.lists(st.floats(0.0, 100.0, width=32), min_size=1, max_size=60),
    window=st.integers(0, 80),
)
def test_a_moving_average_is_the_mean_of_each_stretch(curve, window):
    found = moving_average(np.array(curve, np.float32), window)
    # Sums of at most 60 losses of at most 100 in 64 bits: 60 * 100 * 2.2e-16 * 60.
    np.testing.assert_allclose(found, plain(np.array(curve, float), window), rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("peak", [1e17, 3e38, np.inf, np.nan])
def test_a_rung_that_exploded_does_not_spoil_the_losses_behind_it(window, peak):
    """Table 3's first rung reaches 1e17 and more; the next one starts at 5."""
    curve = curves(1, 40)[0]
    curve[6] = peak
    found = moving_average(curve, window)[7:]
    np.testing.assert_allclose(found, plain(curve[7:].astype(float), window), rtol=1e-12)


@pytest.mark.parametrize("window", [1, 7])
def test_line_and_band_are_mean_and_standard_error_of_the_averaged_runs(window):
    runs = curves(5, 100)
    at = axes()
    draw_curves(at, {"SGD": runs}, window=window)
    smooth = np.stack([plain(curve.astype(float), window) for curve in runs])
    mean, error = smooth.mean(axis=0), stats.sem(smooth, axis=0)
    (line,) = at.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(window - 1, 100))
    np.testing.assert_allclose(line.get_ydata(), mean, rtol=1e-10)
    assert line.get_label() == "SGD"
    (band,) = at.collections
    corners = band.get_paths()[0].vertices
    for number, step in enumerate(line.get_xdata()):
        heights = corners[corners[:, 0] == step, 1]
        assert heights.min() == pytest.approx(mean[number] - error[number], rel=1e-9)
        assert heights.max() == pytest.approx(mean[number] + error[number], rel=1e-9)


def test_a_single_run_is_a_line_without_a_band():
    at = axes()
    draw_curves(at, {"SGD": curves(1, 30)})
    assert len(at.lines) == 1
    assert not at.collections


def test_a_group_that_never_falls_below_the_ceiling_stays_out():
    at = axes()
    low, high = curves(2, 200), [curve + 5.0 for curve in curves(2, 200)]
    crossing = [np.linspace(9.0, 0.3, 200), np.linspace(9.0, 0.3, 200)]
    draw_curves(at, {"low": low, "high": high, "crossing": crossing}, ceiling=0.4)
    assert [line.get_label() for line in at.lines] == ["low", "crossing"]
    assert at.get_ylim()[1] == 0.4
    draw_curves(other := axes(), {"low": low, "high": high})
    assert [line.get_label() for line in other.lines] == ["low", "high"]


def test_the_ceiling_is_held_against_the_average_and_not_against_single_losses():
    at = axes()
    spiky = np.full(50, 0.6)
    spiky[10] = 0.1
    draw_curves(at, {"spiky": [spiky, spiky]}, window=10, ceiling=0.4)
    assert not at.lines


def test_a_group_without_one_finite_mean_stays_out():
    at = axes()
    draw_curves(at, {"gone": [np.full(20, np.nan)] * 2, "here": curves(2, 20)})
    assert [line.get_label() for line in at.lines] == ["here"]


def test_colors_are_by_label():
    at = axes()
    draw_curves(at, {"a": curves(2, 20), "b": curves(2, 20)}, colors={"b": "#123456"})
    assert at.lines[1].get_color() == "#123456"
    np.testing.assert_allclose(
        at.collections[1].get_facecolor()[0, :3], [0x12 / 255, 0x34 / 255, 0x56 / 255]
    )


def test_long_curves_are_thinned_and_keep_their_place():
    at = axes()
    draw_curves(at, {"long": curves(2, 10_000)})
    steps = at.lines[0].get_xdata()
    assert 1000 <= len(steps) <= 2000
    assert steps[0] == 0
    assert len(set(np.diff(steps))) == 1
    mean = np.mean(curves(2, 10_000), axis=0)
    np.testing.assert_allclose(at.lines[0].get_ydata(), mean[steps], rtol=1e-6)


def test_a_group_is_drawn_as_far_as_all_of_its_runs_go():
    """A run that diverged may have ended early."""
    long, short = curves(2, 40)
    panel = axes()
    draw_curves(panel, {"SGD": [long, short[:25]]}, window=5)
    (line,) = panel.lines
    steps, means = line.get_data()
    assert (steps[0], steps[-1]) == (4, 24)
    both = np.mean([plain(long[:25], 5), plain(short[:25], 5)], axis=0)
    np.testing.assert_allclose(means, both, rtol=1e-6)
