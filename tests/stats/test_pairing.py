"""Two curves on the same batches: their difference is tested, free of the noise that both have."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lrsearch.errors import InvalidArgumentError
from lrsearch.stats.pairing import paired_test

STEPS = 60


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_it_is_students_paired_test(scale: float) -> None:
    rng = np.random.default_rng(0)
    for steps in (3, 8, STEPS):
        first, second = scale * rng.standard_normal((2, steps))
        second += 0.3 * scale
        ours = paired_test(first, second)
        theirs = stats.ttest_rel(first / scale, second / scale, alternative="less")
        assert ours.statistic == pytest.approx(theirs.statistic, rel=1e-9)
        assert ours.pvalue == pytest.approx(theirs.pvalue, rel=1e-9)
        assert ours.difference == pytest.approx(np.mean(first - second), rel=1e-9)
        assert ours.n == steps


def test_equal_curves_are_told_apart_no_more_often_than_the_level_says() -> None:
    """Within what 1000 cases tell, on both sides."""
    rows, alpha = 1000, 0.05
    shared = 10.0 * np.random.default_rng(1).standard_normal((rows, 12)).cumsum(axis=1)
    noise = np.random.default_rng(2).standard_normal((2, rows, 12))
    pvalues = np.array(
        [
            paired_test(a, b).pvalue
            for a, b in zip(shared + noise[0], shared + noise[1], strict=True)
        ]
    )
    low, high = stats.binom.interval(0.999, rows, alpha)
    assert low <= np.sum(pvalues < alpha) <= high
    assert low <= np.sum(pvalues > 1.0 - alpha) <= high


def test_two_rates_that_part_are_told_apart_by_a_few_steps() -> None:
    """A trend in the differences is no noise that could have come about by chance."""
    steps = np.arange(8.0)
    assert paired_test(np.exp(-0.1 * steps), np.exp(-0.03 * steps)).pvalue < 0.02


def test_the_batches_noise_that_both_share_does_not_hide_a_difference() -> None:
    rng = np.random.default_rng(1)
    noise = 5.0 * rng.standard_normal(STEPS)
    first, second = noise + 0.05 * rng.standard_normal(STEPS), noise + 0.1
    assert paired_test(first, second).pvalue < 1e-4
    assert paired_test(second, first).pvalue > 1.0 - 1e-4
    assert stats.ttest_ind(first, second, alternative="less").pvalue > 0.2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_curve_that_is_not_finite_lies_above_every_other(bad: float) -> None:
    good = np.linspace(2.0, 1.0, 10)
    broken = good.copy()
    broken[-1] = bad
    worse, better, both = (
        paired_test(broken, good),
        paired_test(good, broken),
        paired_test(broken, broken),
    )
    assert (worse.pvalue, better.pvalue, both.pvalue) == (1.0, 0.0, 0.5)
    assert worse.difference == np.inf
    assert better.difference == -np.inf


def test_curves_a_constant_apart_have_no_noise_to_be_unsure_about() -> None:
    curve = np.linspace(3.0, 2.0, 12)
    lower = paired_test(curve - 0.25, curve)
    assert (lower.difference, lower.statistic, lower.pvalue) == (-0.25, -np.inf, 0.0)
    assert paired_test(curve + 0.25, curve).pvalue == 1.0
    assert paired_test(curve, curve).pvalue == 0.5


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_loss_does_not_matter(scale: float) -> None:
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((2, STEPS))
    here, there = paired_test(first, second), paired_test(scale * first, scale * second)
    assert there.pvalue == pytest.approx(here.pvalue, rel=1e-6)
    assert there.difference == pytest.approx(scale * here.difference)


@pytest.mark.parametrize(("one", "other"), [(5, 6), (2, 2), (0, 0)])
def test_lengths_that_cannot_be_paired_are_refused_in_a_line(one: int, other: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"at least 3, got {one} and {other}") as told:
        paired_test(np.arange(float(one)), np.arange(float(other)))
    assert "\n" not in str(told.value)
