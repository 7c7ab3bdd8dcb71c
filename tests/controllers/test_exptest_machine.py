"""The pure state machine: its paths, and that it never stands still."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.controllers.exptest import (
    CEILING_STEPS,
    SMALLEST_FACTOR,
    ExpTestState,
    correct_window,
    diverged,
    due_step,
    is_complete,
    judge,
    open_window,
)
from lrsearch.controllers.settings import PAPER_FLOOR, ROBUST_FLOOR, ExpTestSettings
from lrsearch.errors import InvalidArgumentError, InvalidTypeError

NAN = float("nan")
ROBUST = ExpTestSettings()
PAPER = ExpTestSettings(mode="paper")


def noise(n, seed=0, size=0.02):
    return size * np.random.default_rng(seed).standard_normal(n)


def decay(n, seed=0, size=0.02):
    return 0.3 + 2.0 * np.exp(-5.0 * np.arange(n) / n) + noise(n, seed, size)


def opened(options=ROBUST, *, length=60, start=0, **changes):
    """A searching state whose window is planned, corrected and ``length`` steps long."""
    return replace(
        ExpTestState(initial_loss=2.3, start=start, raw_length=length, correction=1.0),
        length=length,
        **changes,
    )


def trained(**changes):
    return opened(phase="training", **changes)


# ---------------------------------------------------------------- searching


def test_a_decay_is_accepted_and_the_next_window_is_as_long():
    state = opened()
    after, decision = judge(ROBUST, state, decay(60), 0.1)
    assert (decision.kind, decision.lr, decision.reason) == ("accept", 0.1, "decay")
    assert (after.phase, after.start, after.length, after.correction) == ("training", 60, 60, 1.0)
    assert (after.factor, after.restarts, after.windows) == (1.0, 0, 1)
    window = decision.window
    assert (window.start, window.stop, window.length, window.phase) == (0, 60, 60, "searching")
    assert window.pvalue < 0.025
    assert window.decision == "accept"


def test_a_rise_is_rejected_at_the_first_look():
    after, decision = judge(ROBUST, opened(), 1.0 + np.arange(60) / 60 + noise(60), 0.1)
    assert (decision.kind, decision.reason) == ("restart", "rising")
    assert decision.lr == pytest.approx(0.033)
    assert (after.phase, after.restarts, after.start) == ("searching", 1, 60)
    assert (after.raw_length, after.correction, after.length) == (None, None, None)
    assert after.initial_loss == 2.3


def test_a_flat_start_is_waited_through_and_accepted_when_it_falls():
    losses = np.concatenate([np.full(70, 2.3), decay(400)]) + noise(470, 1)
    state, seen = opened(), []
    for _ in range(3):
        state, decision = judge(ROBUST, state, losses[: state.length], 0.1)
        seen.append((decision.kind, state.looks, state.length))
        if decision.kind != "continue":
            break
        assert state.start == 0
    assert seen == [("continue", 1, 120), ("continue", 2, 240), ("accept", 0, 60)]


def test_a_curve_that_stays_flat_is_rejected_after_three_looks():
    losses = 2.3 + noise(400, 3)
    state, kinds = opened(), []
    while not kinds or kinds[-1] == "continue":
        state, decision = judge(ROBUST, state, losses[: state.length], 0.1)
        kinds.append(decision.kind)
    assert kinds == ["continue", "continue", "restart"]
    assert decision.reason == "flat"
    assert decision.window.stop == 240


def test_patience_ends_with_a_quarter_of_the_budget_if_that_is_longer():
    options = ExpTestSettings(total_steps=4000)
    state, last = opened(), 0
    losses = 2.3 + noise(4000, 3)
    while True:
        state, decision = judge(options, state, losses[: state.length], 0.1)
        last = decision.window.stop
        if decision.kind != "continue":
            break
    assert (decision.kind, last) == ("restart", 1000)


def test_a_steady_fall_is_accepted_at_the_last_look():
    losses = 3.0 - 0.005 * np.arange(240) + noise(240, 2)
    state, decision = opened(looks=2, length=60), None
    state = replace(state, length=240)
    after, decision = judge(ROBUST, state, losses, 0.1)
    assert (decision.kind, decision.reason) == ("accept", "steady fall")
    assert after.phase == "training"
    early = judge(ROBUST, opened(), losses[:60], 0.1)[1]
    assert (early.kind, early.reason) == ("continue", "falling, not bent yet")


def test_a_jump_above_the_start_is_unstable_where_no_batch_explains_it():
    losses = decay(60)
    losses[2] = 4.0  # it began at 2.3
    assert judge(ROBUST, opened(), losses, 0.1)[1].kind == "accept"
    full_batch = ExpTestSettings(full_batch=True)
    after, decision = judge(full_batch, opened(), losses, 0.1)
    assert (decision.kind, decision.reason) == ("restart", "unstable")
    assert after.phase == "searching"


def test_paper_mode_decides_at_once():
    assert judge(PAPER, opened(), decay(60), 0.1)[1].kind == "accept"
    flat = judge(PAPER, opened(), 2.3 + noise(60, 4), 0.1)[1]
    assert (flat.kind, flat.reason) == ("restart", "not exponential")


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("phase", ["searching", "training"])
def test_losses_that_are_not_finite_are_rejected_in_every_phase(bad, phase):
    losses = decay(60)
    losses[-1] = bad
    after, decision = judge(ROBUST, opened(phase=phase), losses, 0.1)
    assert (decision.kind, decision.reason, after.phase) == ("restart", "diverged", "searching")


def test_divergence_needs_no_window():
    after, decision = diverged(ROBUST, ExpTestState(), [2.3, NAN], 0.1)
    assert (decision.kind, decision.reason) == ("restart", "diverged")
    assert (after.start, after.initial_loss, after.restarts) == (2, None, 1)
    assert decision.window.loss_mean == 2.3
    assert np.isnan(decision.window.loss_last)
    assert decision.window.pvalue == 1.0


def test_the_looks_at_one_window_spend_alpha():
    """With alpha shared as 1/2 + 1/4 + 1/8, a p-value in between passes early looks only."""
    losses = decay(60, size=0.5)
    pvalue = judge(ROBUST, opened(), losses, 0.1)[1].window.pvalue
    assert 0.0 < pvalue < 0.5
    options = ExpTestSettings(alpha=min(3.0 * pvalue, 0.99))  # between 2 p and 4 p
    assert judge(options, opened(), losses, 0.1)[1].kind == "accept"
    assert judge(options, opened(looks=1), losses, 0.1)[1].kind != "accept"


# ---------------------------------------------------------------- training


def test_a_shown_plateau_decays_and_keeps_the_phase():
    after, decision = judge(ROBUST, trained(start=100), np.full(60, 0.5), 0.1)
    assert (decision.kind, decision.reason) == ("decay", "plateau")
    assert decision.lr == pytest.approx(0.033)
    assert (after.phase, after.decays, after.start) == ("training", 1, 160)
    assert after.factor == pytest.approx(0.33)
    assert (after.raw_length, after.correction) == (None, None)


def test_a_descent_goes_on_with_the_next_window():
    after, decision = judge(ROBUST, trained(), 1.0 - np.arange(60) / 100 + noise(60), 0.1)
    assert (decision.kind, decision.lr, after.start, after.length) == ("continue", 0.1, 60, 60)
    assert after.factor == 1.0


def test_an_undecided_window_grows_until_patience_ends():
    rng = np.random.default_rng(0)
    losses = 1.0 + 3.0 * rng.standard_normal(5000)
    state, lengths = trained(), []
    for _ in range(10):
        state, decision = judge(ROBUST, state, losses[: state.length], 0.1)
        lengths.append(decision.window.stop - decision.window.start)
        if state.start:
            break
    assert lengths == [60, 120, 240, 480, 960, 1920]
    assert decision.kind == "continue"  # the next window, not a decay: nothing was shown
    assert (state.start, state.length, state.looks) == (1920, 60, 0)


def test_paper_mode_decays_when_no_descent_is_shown():
    assert judge(PAPER, trained(), 1.0 + noise(60, 1), 0.1)[1].kind == "decay"


def test_decays_stop_where_the_rate_is_negligible():
    state = trained(factor=2.0 * SMALLEST_FACTOR)
    after, decision = judge(ROBUST, state, np.full(60, 0.5), 0.1)
    assert (decision.kind, after.decays) == ("continue", 0)


# ---------------------------------------------------------------- restarts


RACED = ExpTestSettings(raced=True, total_steps=1000, anneal=0.4)


def after_a_fall(start=60, to=0.5):
    """A raced run whose first window ends at ``to`` of its first loss, for an eighth."""
    losses = 2.3 * np.concatenate([np.ones(53), np.full(7, to)]) + noise(60, 3)
    state, decision = judge(RACED, opened(start=start - 60), losses, 0.1)
    assert decision.kind == "accept"
    return state


def test_a_raced_run_that_is_back_where_it_began_has_broken_down():
    after, decision = judge(RACED, after_a_fall(), 2.3 + noise(60, 4), 0.1)
    assert (decision.kind, decision.reason) == ("restart", "broken down")
    assert decision.lr == pytest.approx(0.033)
    # The next rate is judged by its own falls.
    assert after.lowest == np.inf
    shoulder = replace(after, phase="training", raw_length=60, correction=1.0, length=60)
    assert judge(RACED, shoulder, 2.3 + noise(60, 5), 0.033)[1].reason != "broken down"


@pytest.mark.parametrize(
    ("state", "losses"),
    [
        (after_a_fall(to=0.8), 2.3),  # it had not plainly fallen
        (after_a_fall(), 0.85 * 2.3),  # worse than before, but below where it began
        (after_a_fall(start=700), 2.3),  # in the tail a restart has no steps left
        (replace(after_a_fall(), initial_loss=0.0), 2.3),  # no first loss to measure by
    ],
)
def test_what_is_no_breakdown_goes_on(state, losses):
    _, decision = judge(RACED, state, losses + noise(60, 4), 0.1)
    assert decision.reason != "broken down"


def test_rates_that_no_race_has_chosen_know_no_breakdown():
    state = trained(lowest=0.3)
    assert judge(ROBUST, state, 2.3 + noise(60, 4), 0.1)[1].reason != "broken down"


def test_a_restart_in_training_is_lower_than_the_rate_that_diverged():
    state = trained(factor=0.33**3, decays=3)
    after, decision = diverged(ROBUST, state, [NAN], 0.1)
    assert after.factor == pytest.approx(0.33**4)
    assert decision.lr == pytest.approx(0.1 * 0.33)
    again, _ = diverged(ROBUST, after, [NAN], decision.lr)
    assert again.factor == pytest.approx(0.33**5)


def test_the_ladder_ends_with_a_stop():
    state, lr, kinds = ExpTestState(), 1.0, []
    while not state.stopped:
        state, decision = diverged(ROBUST, state, [NAN], lr)
        lr = decision.lr
        kinds.append(decision.kind)
        assert state.factor == pytest.approx(0.33**state.restarts)
    assert kinds[:-1] == ["restart"] * (len(kinds) - 1)
    assert kinds[-1] == "stop"
    assert decision.reason == "no rate passed; the last one: diverged"
    assert lr >= SMALLEST_FACTOR


# ---------------------------------------------------------------- lengths


def test_windows_keep_within_floor_ceiling_and_budget():
    def raw(options, *, loss=2.3, lr=0.1, start=0):
        state = replace(ExpTestState(), start=start)
        return open_window(options, state, initial_loss=loss, lr=lr, step=start).raw_length

    assert raw(ROBUST, lr=1e-6) == CEILING_STEPS
    assert raw(ROBUST, lr=10.0) == ROBUST_FLOOR
    assert raw(ROBUST, lr=0.04) == 60  # Eq. 52 itself: 59.8
    assert raw(ExpTestSettings(total_steps=5000), lr=1e-6) == 500
    assert raw(ExpTestSettings(total_steps=5000), lr=1e-6, start=4990) == 10
    assert raw(PAPER, lr=1e-6) == 2393196
    assert raw(PAPER, lr=10.0) == PAPER_FLOOR
    assert raw(ExpTestSettings(mode="paper", total_steps=900), lr=1e-6) == 900


def test_the_correction_lengthens_the_window_within_the_ceiling():
    state = open_window(ROBUST, ExpTestState(), initial_loss=2.3, lr=0.04, step=30)
    assert (state.raw_length, state.length) == (60, None)
    assert correct_window(ROBUST, state, correction=2.5).length == 150
    assert correct_window(ROBUST, state, correction=float("inf")).length == CEILING_STEPS
    paper = open_window(PAPER, ExpTestState(), initial_loss=2.3, lr=0.04, step=1)
    assert correct_window(PAPER, paper, correction=2.5).length == 150


def test_full_batch_windows_need_no_correction():
    options = ExpTestSettings(full_batch=True)
    state = open_window(options, ExpTestState(), initial_loss=2.3, lr=0.04, step=30)
    assert (state.correction, state.length) == (1.0, 60)


@given(
    start=st.integers(0, 4000),
    total=st.none() | st.integers(4001, 60_000),
    rate=st.floats(1e-5, 1e2),
    correction=st.floats(1.0, 1e6),
)
def test_a_correction_is_measured_exactly_where_it_could_change_the_window(
    start, total, rate, correction
):
    options = ExpTestSettings(total_steps=total)
    state = ExpTestState(initial_loss=2.3, start=start)
    planned = open_window(options, state, initial_loss=0.0, lr=rate, step=start)
    measured = correct_window(options, planned, correction=correction)
    extreme = correct_window(options, planned, correction=1e9)
    if planned.length is None:
        assert extreme.length > planned.raw_length
    else:
        assert planned.length == measured.length == extreme.length
        if is_complete(options, planned, start + planned.length):
            losses = 2.0 + np.sin(np.arange(planned.length))
            after = [judge(options, one, losses, rate)[0] for one in (planned, measured)]
            assert due_step(options, after[0]) == due_step(options, after[1])


def test_paper_mode_measures_every_correction():
    options = ExpTestSettings(mode="paper", total_steps=100)
    opened = open_window(options, ExpTestState(), initial_loss=2.0, lr=1e-6, step=1)
    assert (opened.raw_length, opened.length) == (100, None)


def test_the_first_loss_counts_over_all_rungs():
    state = replace(ExpTestState(), initial_loss=2.3, start=500)
    later = open_window(ROBUST, state, initial_loss=99.0, lr=0.04, step=500)
    assert (later.initial_loss, later.raw_length) == (2.3, 60)


def test_a_window_is_due_at_its_end_or_at_the_budgets():
    state = opened(start=100, length=60)
    assert due_step(ROBUST, state) == 160
    assert due_step(ExpTestSettings(total_steps=130), state) == 130
    assert due_step(ROBUST, ExpTestState()) == ROBUST_FLOOR
    assert due_step(PAPER, ExpTestState()) == 1
    assert is_complete(ROBUST, state, 160)
    assert not is_complete(ROBUST, state, 159)
    assert not is_complete(ROBUST, opened(length=10), 29)  # cut by the budget: no verdict
    assert not is_complete(ROBUST, ExpTestState(), 1000)


def test_a_window_must_be_opened_before_it_is_corrected():
    with pytest.raises(InvalidArgumentError, match="call open_window first"):
        correct_window(ROBUST, ExpTestState(), correction=1.0)


CURVES = {
    "decay": lambda n, seed: decay(n, seed),
    "flat": lambda n, seed: 1.0 + noise(n, seed),
    "constant": lambda n, seed: np.full(n, 0.5),
    "rise": lambda n, seed: 1.0 + np.arange(n) / n,
    "zero": lambda n, seed: np.zeros(n),
    "broken": lambda n, seed: np.full(n, NAN),
    "wild": lambda n, seed: np.random.default_rng(seed).standard_cauchy(n),
}


@settings(max_examples=150, deadline=None)
@given(
    initial_loss=st.floats(allow_nan=False, allow_infinity=False),
    lr=st.floats(1e-12, 1e6),
    total=st.one_of(st.none(), st.integers(1, 5000)),
    mode=st.sampled_from(["robust", "paper"]),
    full_batch=st.booleans(),
    correction=st.one_of(st.floats(1.0, 1e6), st.just(float("inf"))),
    curves=st.lists(st.sampled_from(sorted(CURVES)), min_size=1, max_size=6),
    beta=st.sampled_from([0.1, 0.33, 0.9]),
)
def test_the_machine_never_stands_still(
    initial_loss, lr, total, mode, full_batch, correction, curves, beta
):
    """Walk due step after due step: each brings a length or a verdict, until the budget ends."""
    options = ExpTestSettings(beta=beta, mode=mode, full_batch=full_batch, total_steps=total)
    state, step = ExpTestState(), 0
    for walked in range(40):
        due = due_step(options, state)
        assert due > step or state.length is None or total == due
        step = max(step, due)
        if state.raw_length is None:
            state = open_window(options, state, initial_loss=initial_loss, lr=lr, step=step)
        if state.length is None and step - state.start >= state.raw_length:
            state = correct_window(options, state, correction=correction)
        assert state.raw_length >= 1
        if state.length is not None and is_complete(options, state, step):
            size = step - state.start
            if size > 20000:  # paper mode has no ceiling: time passes, nothing else
                return
            before = state
            curve = CURVES[curves[walked % len(curves)]](size, walked)
            state, decision = judge(options, state, curve, lr)
            assert state.windows == before.windows + 1
            assert state.start in (before.start, step)
            if state.start == before.start:
                assert state.length > before.length
            assert 0.0 < decision.lr < float("inf")
            lr = decision.lr
            if state.stopped:
                return
        if total is not None and step >= total:
            return
        if state.length is not None:
            assert due_step(options, state) > step


@given(st.sampled_from(sorted(CURVES)), st.integers(0, 5), st.sampled_from([ROBUST, PAPER]))
def test_judging_is_pure(name, seed, options):
    state, losses = opened(), CURVES[name](60, seed)
    kept = losses.copy()
    first, second = judge(options, state, losses, 0.1), judge(options, state, losses, 0.1)
    assert first[0] == second[0]
    assert first[1].kind == second[1].kind
    assert state == opened()
    np.testing.assert_array_equal(losses, kept)


def test_records_are_frozen():
    with pytest.raises(FrozenInstanceError):
        ExpTestState().start = 3
    with pytest.raises(FrozenInstanceError):
        ExpTestSettings().alpha = 0.1


def test_a_state_survives_as_plain_values():
    state = opened(start=7, restarts=2, factor=0.33**2)
    assert ExpTestState(**state.as_dict()) == state


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0.0}, InvalidArgumentError, "alpha must lie strictly between 0 and 1"),
        ({"beta": 1.0}, InvalidArgumentError, "beta must lie strictly between 0 and 1"),
        ({"mode": "notebook"}, InvalidArgumentError, "mode must be one of"),
        ({"total_steps": 0}, InvalidArgumentError, "total_steps must be a positive whole number"),
        ({"total_steps": 1.5}, InvalidArgumentError, "got 1.5"),
        ({"total_steps": float("inf")}, InvalidArgumentError, "got inf"),
        ({"total_steps": NAN}, InvalidArgumentError, "got nan"),
        ({"total_steps": "9"}, InvalidTypeError, "total_steps must be a number, got '9'"),
    ],
)
def test_bad_settings_are_named(options, error, message):
    with pytest.raises(error, match=message):
        ExpTestSettings(**options)
