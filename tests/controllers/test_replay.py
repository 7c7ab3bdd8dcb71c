"""The verdict on a recorded curve."""

import numpy as np
import pytest

from lrsearch.controllers.exptest import ExpTestSettings
from lrsearch.controllers.replay import search_verdict

ROBUST, PAPER = ExpTestSettings(), ExpTestSettings(mode="paper")


def decay(n, noise=0.02, seed=0):
    rng = np.random.default_rng(seed)
    return 0.3 + 2.0 * np.exp(-5.0 * np.arange(n) / n) + noise * rng.standard_normal(n)


def test_too_early_is_no_verdict():
    assert search_verdict(ROBUST, [], lr=0.1) is None
    assert search_verdict(ROBUST, decay(29), lr=0.1) is None
    assert search_verdict(PAPER, decay(3), lr=0.1) is None


def test_a_verdict_comes_with_the_windows_last_point_and_stays():
    curve = decay(300)
    first = search_verdict(ROBUST, curve[:60], lr=0.04)
    assert (first.kind, first.window.stop) == ("accept", 60)
    assert search_verdict(ROBUST, curve[:59], lr=0.04) is None
    assert search_verdict(ROBUST, curve, lr=0.04) == first


@pytest.mark.parametrize("options", [ROBUST, PAPER])
def test_a_rise_is_rejected(options):
    decision = search_verdict(options, 1.0 + 0.01 * np.arange(200), lr=0.04)
    assert (decision.kind, decision.lr) == ("restart", pytest.approx(0.33 * 0.04))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 1, 20])
def test_a_loss_that_is_not_finite_is_rejected_before_the_window_ends(bad, at):
    curve = decay(100)
    curve[at] = bad
    decision = search_verdict(ROBUST, curve[: at + 1], lr=0.04)
    assert (decision.kind, decision.reason) == ("restart", "diverged")
    assert decision.window.stop == at + 1
    assert search_verdict(ROBUST, curve, lr=0.04).window.stop == at + 1


def test_a_rate_that_passed_and_diverged_later_is_rejected_after_all():
    curve = decay(100)
    assert search_verdict(ROBUST, curve[:80], lr=0.04).kind == "accept"
    curve[80] = float("nan")
    decision = search_verdict(ROBUST, curve, lr=0.04)
    assert (decision.kind, decision.reason) == ("restart", "diverged")
    assert (decision.window.phase, decision.window.start, decision.window.stop) == (
        "training",
        60,
        81,
    )


def test_a_window_cut_by_the_budget_gives_no_verdict():
    """As in training: an F-test on a handful of points is a coin."""
    options = ExpTestSettings(total_steps=12)
    assert search_verdict(options, decay(12), lr=0.04) is None


def test_a_flat_start_is_waited_through():
    curve = np.concatenate([np.full(70, 2.3), decay(300)])
    curve += 0.02 * np.random.default_rng(1).standard_normal(curve.size)
    assert search_verdict(ROBUST, curve[:119], lr=0.04) is None
    decision = search_verdict(ROBUST, curve, lr=0.04)
    assert (decision.kind, decision.window.start) == ("accept", 0)
    assert decision.window.stop in (120, 240)
