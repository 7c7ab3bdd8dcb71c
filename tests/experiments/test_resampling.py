"""Bootstrap over tasks, then seeds: against known spreads, and how often it holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from experiments.harness.resampling import bootstrap_interval, holm, paired_interval
from lrsearch.errors import InvalidArgumentError


def test_values_without_spread_have_an_interval_of_no_width():
    assert bootstrap_interval(np.full((4, 3), 2.5), draws=50) == (2.5, 2.5)


def test_tasks_vary_and_not_only_seeds():
    """Ten tasks far apart and of no noise: the interval is that of a mean of ten."""
    values = np.repeat(np.arange(10.0)[:, None], 5, axis=1)
    low, high = bootstrap_interval(values)
    half = stats.norm.ppf(0.975) * np.std(np.arange(10.0)) / np.sqrt(10)
    # Percentiles of 5000 draws of a sum that is nearly normal.
    assert (low, high) == pytest.approx((4.5 - half, 4.5 + half), abs=0.15)


def test_seeds_vary_inside_a_task():
    values = np.tile(np.array([[0.0, 10.0]]), (1, 50))
    low, high = bootstrap_interval(values)
    half = stats.norm.ppf(0.975) * 5.0 / np.sqrt(100)
    assert (low, high) == pytest.approx((5.0 - half, 5.0 + half), abs=0.15)


def test_what_follows_the_seeds_stays_together():
    values = np.stack([np.arange(12.0).reshape(4, 3), -np.arange(12.0).reshape(4, 3)], axis=2)
    assert bootstrap_interval(values, draws=50) == (0.0, 0.0)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    tasks, seeds, repeats = 20, 3, 200
    held = 0
    for _ in range(repeats):
        truth = generator.normal(0.0, 1.0, (tasks, 1))
        low, high = bootstrap_interval(
            truth + generator.normal(0.0, 1.0, (tasks, seeds)), draws=200
        )
        held += low <= 0.0 <= high
    # With 20 tasks a percentile interval holds somewhat less than 95 %; seeds are drawn anew
    # inside tasks whose means hold their noise already, which gives some back.
    assert stats.binomtest(held, repeats, 0.95).pvalue > 1e-3


def test_a_paired_difference_leaves_out_what_was_not_measured():
    differences = np.array([[[1.0, np.nan], [2.0, np.nan]], [[3.0, 2.0], [3.0, 1.0]]])
    found = paired_interval(differences, draws=200)
    assert found.mean == 2.0
    assert 1.0 <= found.low <= found.mean <= found.high <= 3.0
    assert found.pvalue == stats.wilcoxon([1.0, 2.0, 3.0, 2.0, 3.0, 1.0]).pvalue


def test_equal_methods_differ_by_nothing():
    found = paired_interval(np.zeros((3, 2)), draws=20)
    assert (found.mean, found.low, found.high, found.pvalue) == (0.0, 0.0, 0.0, 1.0)


def test_holm_is_the_textbooks():
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1, never falling.
    assert holm(np.array([0.03, 0.01, 0.04])) == pytest.approx([0.06, 0.03, 0.06])


def test_no_values_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"values .*\(0, 3\)"):
        bootstrap_interval(np.empty((0, 3)))


def test_whole_tasks_keep_their_seeds():
    values = np.array([[0.0, 10.0], [0.0, 10.0]])
    assert bootstrap_interval(values, draws=50, whole_tasks=True) == (5.0, 5.0)
    assert bootstrap_interval(values, draws=50) != (5.0, 5.0)


def test_a_test_of_tasks_does_not_count_their_seeds_as_independent():
    differences = np.repeat(np.arange(1.0, 6.0)[:, None], 8, axis=1)
    found = paired_interval(differences, draws=20, per_task=True)
    assert found.pvalue == stats.wilcoxon(np.arange(1.0, 6.0)).pvalue
    assert paired_interval(differences, draws=20).pvalue < found.pvalue
