"""Two curves on the same batches: the difference is tested, its correlation in time included."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lrsearch.errors import InvalidArgumentError
from lrsearch.stats.pairing import paired_test

Floats = NDArray[np.float64]
STEPS = 60


def ar1(rng: np.random.Generator, rho: float, *, rows: int, steps: int = STEPS) -> Floats:
    """Stationary series of mean 0 and deviation 1, shape (rows, steps)."""
    series = np.empty((rows, steps))
    series[:, 0] = rng.standard_normal(rows)
    for step in range(1, steps):
        series[:, step] = rho * series[:, step - 1] + np.sqrt(1.0 - rho**2) * rng.standard_normal(
            rows
        )
    return series


def test_independent_differences_give_students_paired_test_but_for_what_is_not_known_of_them() -> (
    None
):
    """The correlation is averaged over, not taken to be zero, so that errors differ a little."""
    rng = np.random.default_rng(0)
    shared = 10.0 * rng.standard_normal((200, STEPS))
    shifts = rng.uniform(-0.3, 0.3, 200)
    first, second = shared + rng.standard_normal((200, STEPS)), shared
    ours = [paired_test(a + s, b) for a, b, s in zip(first, second, shifts, strict=True)]
    theirs = [
        stats.ttest_rel(a + s, b, alternative="less")
        for a, b, s in zip(first, second, shifts, strict=True)
    ]
    t_ours = np.array([each.statistic for each in ours])
    t_theirs = np.array([each.statistic for each in theirs])
    assert np.corrcoef(t_ours, t_theirs)[0, 1] > 0.98
    # An error of the mean of n independent terms, where rho is known to about 1 / sqrt(n).
    spread = 1.0 / np.sqrt(STEPS)
    most = np.sqrt((1.0 + 2.0 * spread) / (1.0 - 2.0 * spread))
    ratio = (t_ours / t_theirs)[np.abs(t_theirs) > 0.5]
    assert 1.0 / most < np.median(ratio) < most
    assert {each.n for each in ours} == {STEPS}
    np.testing.assert_allclose(
        [each.difference for each in ours], (first - second).mean(axis=1) + shifts, rtol=1e-9
    )


def test_the_batches_noise_that_both_share_does_not_hide_a_difference() -> None:
    rng = np.random.default_rng(1)
    noise = 5.0 * rng.standard_normal(STEPS)
    first, second = noise + 0.05 * rng.standard_normal(STEPS), noise + 0.1
    assert paired_test(first, second).pvalue < 1e-4
    assert paired_test(second, first).pvalue > 1.0 - 1e-4
    assert stats.ttest_ind(first, second, alternative="less").pvalue > 0.2


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_equal_curves_are_told_apart_no_more_often_than_the_level_says(rho: float) -> None:
    """Within what 600 cases tell; at 0.8 a test that takes the differences for independent
    would be wrong in a quarter of all."""
    rows, alpha = 600, 0.05
    gaps = ar1(np.random.default_rng(2), rho, rows=rows)
    wrong = sum(paired_test(gap, np.zeros(STEPS)).pvalue < alpha for gap in gaps)
    assert wrong <= stats.binom.ppf(0.95, rows, alpha)
    if rho == 0.8:
        naive = sum(stats.ttest_1samp(gap, 0.0, alternative="less").pvalue < alpha for gap in gaps)
        assert naive > 2 * wrong


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
