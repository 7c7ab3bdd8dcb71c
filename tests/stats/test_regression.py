"""Regression in noise that is correlated and changes its size: against written-out GLS."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter

from lrsearch.stats import regression
from lrsearch.stats.regression import correlated_fit


def ar1(n, rho, rng):
    return lfilter([1.0], [1.0, -rho], rng.standard_normal(n + 500))[500:]


def line(n):
    return np.stack([np.full(n, n**-0.5), np.linspace(-1.0, 1.0, n) / n**0.5])


@pytest.mark.parametrize("correlation", [-0.3, 0.0, 0.6, 0.95])
def test_every_correlation_has_the_coefficient_and_likelihood_of_dense_gls(correlation):
    n, rng = 40, np.random.default_rng(4)
    columns, y = line(n), ar1(n, 0.7, rng)
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    inverse = np.linalg.inv((correlation + 0.0) ** lag)
    inner = columns @ inverse @ columns.T
    beta = np.linalg.solve(inner, columns @ inverse @ y)
    rest = y - beta @ columns
    rss = rest @ inverse @ rest
    variance = rss / (n - 2) * np.linalg.inv(inner)[-1, -1]
    likelihood = -0.5 * (
        -np.linalg.slogdet(inverse)[1] + np.linalg.slogdet(inner)[1] + (n - 2) * np.log(rss)
    )
    grid = np.array([0.0, correlation])
    found, squared, weight = regression._posterior(
        regression._moments(np.vstack([columns, y])), n, grid
    )
    assert found[1] == pytest.approx(beta[-1], rel=1e-9)
    assert squared[1] == pytest.approx(variance, rel=1e-9)
    flat = y - columns.T @ np.linalg.lstsq(columns.T, y, rcond=None)[0]
    inner_flat = columns @ columns.T
    at_zero = -0.5 * (np.linalg.slogdet(inner_flat)[1] + (n - 2) * np.log(flat @ flat))
    odds = likelihood - at_zero + np.log1p(-(correlation**2))
    assert np.log(weight[1] / weight[0]) == pytest.approx(odds, abs=1e-8)


@pytest.mark.parametrize("n", [50, 1000])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_mean_correlation_is_near_the_truth(n, rho):
    found = []
    for seed in range(60):
        y = ar1(n, rho, np.random.default_rng(seed))
        found.append(correlated_fit(line(n), y, noise_floor=0.0).correlation)
    error = np.std(found) / np.sqrt(len(found))
    bias = 6.0 / n  # the flat prior pulls short windows towards 0
    assert abs(np.mean(found) - rho) < 4.0 * error + bias


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("profile", [(1.0, 1.0), (3.0, 0.3)])
def test_the_slope_test_keeps_its_level_on_both_sides(rho, profile):
    """Below 5 % among 600 each, as chance allows (99.9 %)."""
    n, runs = 100, 600
    rng = np.random.default_rng(11)
    below = above = 0
    for _ in range(runs):
        y = ar1(n, rho, rng) * np.linspace(*profile, n)
        fit = correlated_fit(line(n), y, noise_floor=0.0)
        pvalue = fit.averaged(stats.t.cdf(fit.t(), fit.df))
        below += pvalue < 0.05
        above += pvalue > 0.95
    assert max(below, above) <= stats.binom.ppf(0.999, runs, 0.05)


def test_independent_noise_costs_next_to_nothing():
    n, rng = 2000, np.random.default_rng(0)
    y = rng.standard_normal(n)
    fit = correlated_fit(line(n), y, noise_floor=0.0)
    ordinary = stats.linregress(line(n)[1], y)
    gap = float(fit.weight @ fit.coefficient) - ordinary.slope
    assert abs(gap) < 0.05 * ordinary.stderr
    assert float(fit.weight @ fit.stderr) == pytest.approx(ordinary.stderr, rel=0.1)


def test_an_exact_fit_has_no_error():
    columns = line(20)
    fit = correlated_fit(columns, 3.0 * columns[0] - 2.0 * columns[1], noise_floor=1e-20)
    assert fit.coefficient == pytest.approx([-2.0])
    assert fit.t().tolist() == [-np.inf]
    assert fit.t(float(fit.coefficient[0])).tolist() == [0.0]


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), tilt=st.floats(-10, 10))
def test_adding_a_column_shifts_its_coefficient_alone(seed, scale, tilt):
    columns, y = line(30), np.random.default_rng(seed).standard_normal(30)
    plain = correlated_fit(columns, y, noise_floor=0.0)
    moved = correlated_fit(columns, scale * y + tilt * columns[1], noise_floor=0.0)
    assert moved.coefficient == pytest.approx(scale * plain.coefficient + tilt, rel=1e-6, abs=1e-6)
    assert moved.stderr == pytest.approx(scale * plain.stderr, rel=1e-6)
    assert moved.weight == pytest.approx(plain.weight, abs=1e-6)
