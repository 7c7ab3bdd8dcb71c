"""How many independent losses a correlated window is worth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter

from lrsearch.stats import effective_sample_size, lag_one_autocorrelation


def ar1(n, rho, seed):
    errors = np.random.default_rng(seed).standard_normal(n + 500)
    return lfilter([1.0], [1.0, -rho], errors)[500:]


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_estimates_the_correlation_of_ar1_noise(rho):
    estimates = [lag_one_autocorrelation(ar1(2000, rho, seed)) for seed in range(20)]
    assert np.mean(estimates) == pytest.approx(rho, abs=0.02)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_the_correction_leaves_little_bias_in_short_windows(rho):
    """A line is removed first, as the tests do: that biases the plain estimate downward."""
    x = np.arange(50)
    estimates, plain = [], []
    for seed in range(200):
        y = ar1(50, rho, seed)
        residual = y - np.polyval(np.polyfit(x, y, 1), x)
        estimates.append(lag_one_autocorrelation(residual))
        plain.append(residual[1:] @ residual[:-1] / (residual @ residual))
    assert abs(np.mean(estimates) - rho) < 0.6 * abs(np.mean(plain) - rho)
    assert np.mean(estimates) == pytest.approx(rho, abs=0.1)


def test_the_size_follows_the_formula():
    residual = np.array([1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    raw = 1.0 / 8.0  # products: 1 -1 1 -1 1 -1 1
    r = raw + (1.0 + 4.0 * raw) / 8.0
    assert lag_one_autocorrelation(residual) == pytest.approx(r)
    assert effective_sample_size(residual) == pytest.approx(8.0 * (1.0 - r) / (1.0 + r))


def test_negative_correlation_is_not_rewarded():
    residual = np.tile([1.0, -1.0], 50)
    assert lag_one_autocorrelation(residual) == pytest.approx(-0.98)
    assert effective_sample_size(residual) == 100.0


def test_no_residual_is_no_correlation():
    assert lag_one_autocorrelation(np.zeros(9)) == 0.0
    assert effective_sample_size(np.zeros(9)) == 9.0


def test_a_smooth_misfit_keeps_the_fewest():
    smooth = np.cos(np.linspace(0.0, 2.0 * np.pi, 400))
    assert effective_sample_size(smooth, fewest=6.0) == 6.0
    assert effective_sample_size(smooth[:4], fewest=6.0) <= 4.0


@given(
    st.lists(st.floats(-1.0, 1.0).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=2),
    st.floats(0, 10),
)
def test_the_size_lies_between_the_fewest_and_all(residual, fewest):
    values = np.asarray(residual)
    size = effective_sample_size(values, fewest=fewest)
    assert min(fewest, values.size) <= size <= values.size
