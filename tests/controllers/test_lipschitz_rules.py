"""The update rules of [L] section 6: closed forms, and plain versions that walk beside them."""

from math import inf, isnan, nan, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.controllers.lipschitz import (
    GradientBound,
    LipschitzRule,
    LipschitzState,
    bound_gradient,
    first_rate,
    renew,
)

BOUNDS = [0.6, 0.9, 0.4, 2.0, 1.1, 0.05]


def bound(lipschitz):
    return GradientBound(lipschitz, lipschitz**2)


def rates(rule, bounds):
    state, found = LipschitzState(), []
    for lipschitz in bounds:
        state, rate, reason = renew(rule, state, bound(lipschitz))
        assert reason == ""
        found.append(rate)
    return found


def test_plain_descent_takes_the_inverse():
    assert rates(LipschitzRule("sgd"), BOUNDS) == [1 / L for L in BOUNDS]


def test_momentum_walks_with_adamo_written_plainly():
    K, expected = BOUNDS[0], []
    for L in BOUNDS:
        K = 0.9 * K + 0.1 * L
        expected.append((1 - 0.9) / K)
    rule = LipschitzRule("momentum", beta1=0.9, gain=1 - 0.9)
    assert rates(rule, BOUNDS) == pytest.approx(expected, rel=1e-12)


def test_momentum_from_a_start_walks_with_the_papers_code():
    K, expected = 0.5, []
    for L in BOUNDS:
        K = 0.9 * K + 0.1 * L
        expected.append(0.1 / K)
    rule = LipschitzRule("momentum", beta1=0.9, gain=0.1, start=(0.5,))
    assert rates(rule, BOUNDS) == pytest.approx(expected, rel=1e-12)


def test_rmsprop_walks_with_algorithm_2_written_plainly():
    K, expected = 0.0, []
    for L in BOUNDS:
        K = 0.99 * K + 0.01 * L**2
        expected.append((sqrt(K) + 1e-8) / L)
    rule = LipschitzRule("rmsprop", beta2=0.99, eps=1e-8)
    assert rates(rule, BOUNDS) == pytest.approx(expected, rel=1e-12)


def test_adam_walks_with_auto_adam_with_bias_correction_written_plainly():
    K1 = K2 = 0.0
    expected = []
    for t, L in enumerate(BOUNDS, start=1):
        K1 = 0.9 * K1 + 0.1 * L
        K2 = 0.999 * K2 + 0.001 * L**2
        expected.append((sqrt(K2 / (1 - 0.999**t)) + 1e-8) / (K1 / (1 - 0.9**t)))
    rule = LipschitzRule("adam", beta1=0.9, beta2=0.999, eps=1e-8)
    assert rates(rule, BOUNDS) == pytest.approx(expected, rel=1e-12)


def test_adam_from_a_start_has_no_bias_correction():
    rule = LipschitzRule("adam", beta1=0.9, beta2=0.999, start=(1.0, 1e-6))
    expected = sqrt(0.999e-6 + 0.001 * 0.6**2) / (0.9 + 0.1 * 0.6)
    assert rates(rule, [0.6]) == pytest.approx([expected], rel=1e-12)


@given(lipschitz=st.floats(1e-6, 1e6), epochs=st.integers(1, 50))
def test_a_constant_bound_gives_constant_rates_but_for_rmsprops_warm_up(lipschitz, epochs):
    bounds = [lipschitz] * epochs
    momentum = rates(LipschitzRule("momentum", beta1=0.9, gain=0.1), bounds)
    assert momentum == pytest.approx([0.1 / lipschitz] * epochs, rel=1e-12)
    adam = rates(LipschitzRule("adam", beta1=0.9, beta2=0.999), bounds)
    assert adam == pytest.approx([1.0] * epochs, rel=1e-9)
    rmsprop = rates(LipschitzRule("rmsprop", beta2=0.9), bounds)
    assert rmsprop == pytest.approx([sqrt(1 - 0.9**t) for t in range(1, epochs + 1)], rel=1e-9)


def test_the_squared_bound_drops_the_cross_term():
    found = bound_gradient(
        "cross_entropy", batch_size=2, k_z=5.0, classes=10, weight_norm=3.0, weight_decay=0.1
    )
    assert found.lipschitz == pytest.approx(0.9 * 2.5 + 0.3, rel=1e-12)
    assert found.squared == pytest.approx(2.25**2 + 0.3**2, rel=1e-12)


def test_the_bound_of_one_entry_is_smaller_by_the_number_of_entries():
    whole = bound_gradient("binary_cross_entropy", batch_size=4, k_z=2.0, weight_norm=1.0)
    entry = bound_gradient(
        "binary_cross_entropy",
        batch_size=4,
        k_z=2.0,
        weight_norm=1.0,
        squared="mean",
        entries=50,
    )
    assert whole.lipschitz == entry.lipschitz == 0.25
    assert (whole.squared, entry.squared) == (0.0625, 0.0625 / 50)


def test_the_codes_square_takes_the_squared_activations_and_keeps_the_cross_term():
    found = bound_gradient(
        "cross_entropy",
        batch_size=2,
        k_z=5.0,
        classes=10,
        weight_norm=3.0,
        weight_decay=0.1,
        squared="elementwise",
        k_squared=7.0,
    )
    assert found.lipschitz == pytest.approx(0.9 * 2.5 + 0.3, rel=1e-12)
    expected = 0.45**2 * 7.0 + 2 * 2.25 * 0.3 + 0.3**2
    assert found.squared == pytest.approx(expected, rel=1e-12)


def test_penalties_and_the_losss_scale_add_up():
    found = bound_gradient(
        "binary_cross_entropy",
        batch_size=4,
        k_z=2.0,
        weight_norm=3.0,
        weight_decay=0.1,
        tikhonov=0.5,
        loss_scale=2.0,
    )
    assert found.lipschitz == pytest.approx(2 * 0.25 + 0.1 * 3 + 2 * 3 * 0.5, rel=1e-12)


def test_the_codes_square_needs_its_norm():
    with pytest.raises(ValueError, match="k_squared must be given"):
        bound_gradient(
            "cross_entropy", batch_size=2, k_z=5.0, classes=3, weight_norm=1, squared="elementwise"
        )


@given(lipschitz=st.floats(1e-3, 1e3), epochs=st.integers(1, 30))
def test_without_bias_correction_adams_rate_drifts_as_the_means_fill(lipschitz, epochs):
    """[L] 7.4: the rate 'slowly increases' once K1 is full; sqrt(1 - b2^t) / (1 - b1^t)."""
    rule = LipschitzRule("adam", beta1=0.9, beta2=0.999, corrected=False)
    expected = [sqrt(1 - 0.999**t) / (1 - 0.9**t) for t in range(1, epochs + 1)]
    assert rates(rule, [lipschitz] * epochs) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (LipschitzRule("sgd"), None),
        (LipschitzRule("momentum", beta1=0.9, gain=0.1), 0.01),
        (LipschitzRule("momentum", beta1=0.9, gain=0.1, start=(0.5,)), 0.05),
        (LipschitzRule("rmsprop", beta2=0.9, gain=0.5), 5e-4),
        (LipschitzRule("adam", beta1=0.9, beta2=0.999, eps=1e-7), 1e-3 + 1e-7),
        (LipschitzRule("adam", beta1=0.9, beta2=0.999, start=(2.0, 1e-4)), 5e-3),
    ],
)
def test_the_papers_first_rates(rule, expected):
    assert first_rate(rule) == (None if expected is None else pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"k_z": 0.0, "weight_norm": 1.0}, "inputs are all zero"),
        ({"k_z": nan, "weight_norm": 1.0}, "k_z is not finite"),
        ({"k_z": inf, "weight_norm": 1.0}, "k_z is not finite"),
        ({"k_z": 1.0, "weight_norm": nan}, "weight_norm is not finite"),
        ({"k_z": 1.0, "weight_norm": 1.0, "k_a": nan}, "k_a is not finite"),
        ({"k_z": 1.0, "weight_norm": 1.0, "k_a": 2.0, "target_norm": 2.0}, "vanishes"),
    ],
)
def test_numbers_without_a_bound_keep_state_and_rate(numbers, reason):
    found = bound_gradient("mse", batch_size=4, **numbers)
    assert isnan(found.lipschitz)
    assert reason in found.reason
    state = LipschitzState(k1=0.5, k2=0.25, estimates=3)
    rule = LipschitzRule("adam", beta1=0.9, beta2=0.999)
    assert renew(rule, state, found) == (state, None, found.reason)


def test_the_supremum_of_the_squared_error_does_not_vanish_where_the_papers_difference_does():
    found = bound_gradient(
        "mse", batch_size=4, k_z=1.0, weight_norm=1.0, k_a=2.0, target_norm=2.0, supremum=True
    )
    assert found.lipschitz == 1.0


@pytest.mark.parametrize("lipschitz", [1e-310, 1e300])
def test_a_rate_outside_the_floats_is_no_rate(lipschitz):
    rule = LipschitzRule("sgd", gain=1e-30 if lipschitz > 1 else 1.0)
    state, rate, reason = renew(rule, LipschitzState(), GradientBound(lipschitz, 1.0))
    assert (state, rate) == (LipschitzState(), None)
    assert "positive and finite" in reason


@pytest.mark.parametrize(
    ("kind", "start"),
    [("sgd", (1.0,)), ("momentum", (1.0, 2.0)), ("adam", (1.0,)), ("rmsprop", (0.0,))],
)
def test_a_start_of_the_wrong_size_or_sign_is_refused(kind, start):
    with pytest.raises(ValueError, match="start must"):
        LipschitzRule(kind, start=start)
