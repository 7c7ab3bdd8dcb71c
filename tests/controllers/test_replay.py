"""The verdict on a recorded curve."""

import os
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lrsearch.controllers.replay import first_look, replay, search_verdict
from lrsearch.controllers.settings import ExpTestSettings

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


def test_a_replay_gives_every_look_and_ends_with_the_rejection():
    flat = 2.3 + 0.02 * np.random.default_rng(1).standard_normal(400)
    windows = replay(ROBUST, flat, lr=0.04)
    assert [(w.index, w.start, w.stop) for w in windows] == [(0, 0, 60), (1, 0, 120), (2, 0, 240)]
    assert [w.decision for w in windows] == ["continue", "continue", "restart"]
    assert windows[-1].reason == "flat"


@pytest.mark.parametrize("options", [ROBUST, PAPER])
def test_a_replay_begins_with_the_verdict_of_the_search(options):
    for curve in (decay(400), decay(30), 1.0 + 0.01 * np.arange(200)):
        decision = search_verdict(options, curve, lr=0.04)
        judged = [w for w in replay(options, curve, lr=0.04) if w.decision != "continue"]
        assert [asdict(w) for w in judged[:1]] == (
            [] if decision is None else [asdict(decision.window)]
        )


def test_a_replay_goes_on_past_a_decay_with_windows_of_the_lower_rate():
    curve = np.concatenate([decay(60), np.full(1000, 0.3)])
    curve[60:] += 1e-4 * np.random.default_rng(2).standard_normal(1000)
    windows = replay(PAPER, curve, lr=0.04)
    kinds = [w.decision for w in windows]
    assert kinds[0] == "accept"
    assert kinds.count("decay") >= 2
    first = kinds.index("decay")
    after = windows[first + 1]
    assert after.start == windows[first].stop
    assert after.lr == pytest.approx(0.33 * windows[first].lr)
    assert after.length == pytest.approx(windows[first].length / 0.33, abs=1)
    assert all(a.stop == b.start for a, b in pairwise(windows))


def test_a_replay_ends_where_a_training_diverges():
    curve = decay(300)
    curve[250] = float("inf")
    windows = replay(ROBUST, curve, lr=0.04)
    assert windows[0].decision == "accept"
    assert (windows[-1].decision, windows[-1].reason) == ("restart", "diverged")
    assert (windows[-1].phase, windows[-1].stop) == ("training", 251)


def test_a_budget_ends_a_replay():
    options = ExpTestSettings(total_steps=600)
    assert replay(options, decay(2000), lr=0.04)[-1].stop <= 600
    assert replay(ExpTestSettings(total_steps=12), decay(12), lr=0.04) == []


@pytest.mark.parametrize("options", [ROBUST, PAPER, ExpTestSettings(total_steps=400)])
def test_the_first_look_needs_what_it_says(options):
    curve = decay(200)
    needed = first_look(options, curve[0], lr=0.04)
    assert replay(options, curve[: needed - 1], lr=0.04) == []
    assert replay(options, curve[:needed], lr=0.04)[0].stop == needed


# --- the authors' own curves -------------------------------------------------------------------

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
RECORDED = Path(os.environ.get("LRSEARCH_DATA", BESIDE)) / "exptest_recorded.npz"


@pytest.fixture(scope="module")
def recorded():
    if not RECORDED.is_file():
        pytest.skip("no recorded curves: set LRSEARCH_DATA to the folder of exptest_recorded.npz")
    with np.load(RECORDED) as archive:
        return {name: archive[name] for name in ("mnist", "housing")}


@pytest.mark.parametrize("mode", ["robust", "paper"])
@pytest.mark.parametrize("seed", range(5))
def test_recorded_mnist_runs_pass_at_the_bound_at_the_first_look(recorded, mode, seed):
    settings = ExpTestSettings(mode=mode)
    first = replay(settings, recorded["mnist"][seed][:200], lr=0.0494)[0]
    assert (first.decision, first.reason) == ("accept", "decay")
    assert 49 <= first.stop <= 53


@pytest.mark.parametrize("mode", ["robust", "paper"])
@pytest.mark.parametrize("lr", [0.96, 1.01])
@pytest.mark.parametrize("seed", range(5))
def test_recorded_housing_runs_are_rejected_on_the_first_rung(recorded, mode, lr, seed):
    """As they were: each holds one restart. The fifth rises from 5.6 to 1e17 within six steps."""
    settings = ExpTestSettings(mode=mode, full_batch=True)
    windows = replay(settings, recorded["housing"][seed], lr=lr)
    assert all(w.decision == "continue" for w in windows[:-1])
    wanted = "not exponential" if mode == "paper" else "unstable"
    if seed == 4:
        wanted = "diverged"
    assert (windows[-1].decision, windows[-1].reason) == ("restart", wanted)


def accepted_share(curve, runs=300, lr=0.08):
    verdicts = [search_verdict(ExpTestSettings(), curve(seed), lr=lr) for seed in range(runs)]
    return sum(each is not None and each.kind == "accept" for each in verdicts) / runs


@pytest.mark.parametrize("first", [None, 2.5, 4.0])
def test_a_whole_search_accepts_flat_noise_at_most_alpha_of_the_time(first):
    """All looks and the steady fall together; with one loud first loss, as of a killed network."""

    def flat(seed):
        losses = 2.3 + 0.02 * np.random.default_rng(seed).standard_normal(400)
        if first is not None:
            losses[0] = first
        return losses

    assert accepted_share(flat) <= 0.05


def test_a_steady_fall_is_accepted_at_the_last_look():
    def fall(seed):
        steps = np.arange(400)
        return 2.3 - 0.002 * steps + 0.02 * np.random.default_rng(seed).standard_normal(400)

    assert accepted_share(fall, runs=50) >= 0.95
