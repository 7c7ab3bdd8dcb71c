"""When a curve is beyond hope: not finite, five explosions in a row, or a jump at the start."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.stats import explosion_threshold, first_divergence
from lrsearch.stats.convergence import exponential_test
from lrsearch.stats.divergence import beyond_noise, has_spike, is_unstable, relapses

NAN, INF = float("nan"), float("inf")


def test_a_single_loss_beyond_noise_is_enough_even_among_the_first_ten():
    assert first_divergence([5.6, 70.0, 192.6, 7840.0, 8.2e7, 9.9e16, 5.6, 2.7]) == 5
    assert first_divergence([1.0] * 20 + [1.1e8] + [1.0] * 20) == 20
    assert first_divergence([1.0] * 20 + [0.9e8] + [1.0] * 20) is None
    assert first_divergence([0.0] * 20 + [1.0] + [0.0] * 20) is None
    assert beyond_noise([1.0, 3.0, 2.0, 9.0]) == 2e8
    assert beyond_noise([1.0, 2.0]) == INF


def test_the_threshold_is_ten_times_the_typical_early_loss():
    early = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1000.0]
    assert explosion_threshold(early) == 55.0
    assert explosion_threshold([*early, 0.0, 0.0]) == 55.0  # only the first ten count
    assert explosion_threshold([-x for x in early]) == 55.0


def test_without_ten_finite_losses_there_is_no_threshold():
    assert explosion_threshold([1.0] * 9) == INF
    assert explosion_threshold([1.0] * 9 + [NAN, 1.0]) == INF
    assert explosion_threshold([0.0] * 10) == INF
    assert explosion_threshold([]) == INF


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("at", [0, 1, 5, 40])
def test_a_loss_that_is_not_finite_diverges_at_once(bad, at):
    losses = [1.0] * 50
    losses[at] = bad
    assert first_divergence(losses) == at


def test_five_losses_in_a_row_above_the_threshold_diverge_at_the_fifth():
    assert first_divergence([1.0] * 20 + [10.1] * 5 + [1.0]) == 24
    assert first_divergence([1.0] * 20 + [10.1] * 4 + [1.0] + [10.1] * 4) is None
    assert first_divergence([1.0] * 20 + [9.9] * 30) is None


def test_the_earliest_reason_counts():
    assert first_divergence([1.0] * 12 + [99.0] * 5 + [NAN]) == 16
    assert first_divergence([1.0] * 12 + [99.0] * 3 + [NAN] + [99.0] * 5) == 15


def test_the_threshold_may_be_given():
    assert first_divergence([2.0] * 6, threshold=1.0) == 4
    assert first_divergence([2.0] * 6, threshold=2.0) is None
    assert first_divergence([]) is None


@given(st.lists(st.floats(0.0, 9.0), min_size=0, max_size=60))
def test_losses_below_ten_never_explode_after_a_start_at_one(losses):
    assert first_divergence([1.0] * 10 + losses) is None


@given(st.lists(st.floats(0.0, 100.0), min_size=10, max_size=40), st.sampled_from([1e-3, 1e6]))
def test_the_unit_of_the_loss_plays_no_part(losses, unit):
    scaled = np.asarray(losses) * 2.0 ** np.round(np.log2(unit))  # exact
    if np.median(losses[:10]) > 1e-200:
        assert first_divergence(scaled) == first_divergence(losses)


def falling(n=60):
    rng = np.random.default_rng(0)
    return 0.3 + 2.0 * np.exp(-5.0 * np.arange(n) / n) + 0.05 * rng.standard_normal(n)


def test_a_plain_decay_is_stable():
    assert not is_unstable(falling())
    assert not is_unstable(falling(), factor=1.0)


def test_a_jump_far_above_the_start_is_unstable():
    losses = falling()
    losses[2] = 9.0  # it began at 2.3
    assert is_unstable(losses)
    losses[2] = 4.0
    assert not is_unstable(losses)
    assert is_unstable(losses, factor=1.0)


def test_a_decay_that_only_undoes_its_own_jump_is_unstable():
    losses = 2.3 + 3.0 * np.exp(-np.arange(60) / 10.0)
    losses[0] = 2.3
    assert is_unstable(losses)


def test_a_loud_first_loss_is_the_start_and_no_jump():
    losses = falling()
    losses[0] = 9.0
    assert not is_unstable(losses)


def test_noise_in_proportion_to_the_loss_is_no_jump():
    """Mini-batch losses of a good rate: 20 % of the present loss, over 12 e-foldings."""
    rng = np.random.default_rng(0)
    curve = 0.1 + 2.0 * np.exp(-np.arange(240) / 20.0)
    jumps = sum(is_unstable(curve * np.exp(0.2 * rng.standard_normal(240))) for _ in range(50))
    assert jumps <= 2


@given(st.sampled_from([-20, -3, 5, 30]), st.integers(0, 50))
def test_stability_does_not_depend_on_the_unit(power, seed):
    losses = falling() * np.exp(0.5 * np.random.default_rng(seed).standard_normal(60))
    assert is_unstable(2.0**power * losses) == is_unstable(losses)


@pytest.mark.parametrize("losses", [[1.0] * 5, [1.0, NAN, 1.0, 1.0], [INF] * 4])
def test_nothing_to_look_at_is_stable(losses):
    assert not is_unstable(losses)


def thrown(jump: float, level: float) -> np.ndarray:
    """A loss that starts at 2.3, jumps, and falls to a level in the shape of a decay."""
    rng = np.random.default_rng(3)
    fall = level + (jump - level) * np.exp(-0.3 * np.arange(59))
    return np.concatenate([[2.3], fall + 0.05 * rng.standard_normal(59)])


def test_a_decay_that_only_undoes_its_own_jump_is_unstable_without_a_spike():
    losses = thrown(jump=6.0, level=2.3)
    assert exponential_test(losses).passed
    assert not has_spike(losses)  # less than three times the start
    assert is_unstable(losses)
    assert not is_unstable(thrown(jump=2.5, level=0.4))


def test_a_jump_to_three_times_the_start_is_a_spike_and_full_batch_allows_none():
    assert has_spike(thrown(jump=60.0, level=2.3))
    mild = thrown(jump=4.0, level=0.4)
    assert not has_spike(mild)
    assert has_spike(mild, factor=1.0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_loss_unit_does_not_matter_for_a_spike(scale):
    for losses in (thrown(jump=60.0, level=2.3), thrown(jump=4.0, level=0.4)):
        assert has_spike(scale * losses) == has_spike(losses)


def test_noise_alone_is_no_spike():
    rng = np.random.default_rng(4)
    noisy = [2.3 + 0.3 * rng.standard_t(3, size=60) for _ in range(300)]
    assert sum(map(has_spike, noisy)) <= 3


def test_a_curve_without_noise_relapses_where_it_climbs_back():
    fall = 5.0 * np.exp(-0.2 * np.arange(40.0)) + 0.5
    assert not relapses(fall)
    # Housing, 8-32-32-1, gradient descent at 0.496: out of the valley at steps 16 and 35.
    caught = [5.58, 4.75, 4.1, 1.32, 1.32, 1.31, 1.29, 1.26, 1.18, 1.05, 0.87, 0.75, 0.71, 0.69]
    caught += [0.75, 1.22, 2.52, 1.34, 1.32, 1.32, 1.32, 1.31, 1.3, 1.28, 1.24, 1.17, 1.04, 0.85]
    caught += [0.67, 0.6, 0.58, 0.56, 0.55, 0.59, 1.01, 2.92]
    assert relapses(caught)
    assert relapses(caught[:17])
    assert not relapses(caught[:16])
    assert relapses([*fall, 1.8])
    assert not relapses([*fall, 1.7])
    # A shoulder's noise is small beside the fall that follows.
    assert not relapses([5.5, 5.4, 5.6, 5.4, *fall])
    # What dropout leaves of noise hides a slow fall for a while, and is no climb.
    slow = np.exp(-np.arange(120.0) / 3000.0) + 0.01 * np.random.default_rng(0).normal(size=120)
    assert not relapses(slow)
    assert not relapses(np.arange(10.0))  # it never fell
    assert not relapses([1.0, 0.0, NAN, 1.0])
    assert not relapses([])


@given(st.lists(st.floats(-5.0, 5.0), min_size=2, max_size=30))
def test_a_relapse_knows_no_unit(losses):
    array = np.array(losses)
    assert relapses(4.0 * array) == relapses(array)
    assert relapses(np.minimum.accumulate(array)) is False
