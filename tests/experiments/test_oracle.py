"""The bound on power: closed forms, and the simulated Neyman-Pearson test."""

import numpy as np
import pytest
from scipy import stats

from experiments.calibration.oracle import distance_from_lines, oracle_power
from experiments.calibration.shapes import Noise, Shape, exponential, line


def test_a_line_is_found_at_the_level_alone():
    assert oracle_power(Shape("line", line(30.0)), 50, 0.05) == pytest.approx(0.05)


@pytest.mark.parametrize("n", [20, 50])
def test_a_parabola_in_white_noise_has_a_closed_form(n):
    """d^2 = c^2 sum of squares of the quadratic orthogonal polynomial, by np.polyfit here."""
    x = np.linspace(0.0, 1.0, n)
    curve = 3.0 * x**2
    rest = curve - np.polyval(np.polyfit(x, curve, 1), x)
    expected = stats.norm.cdf(np.linalg.norm(rest) - stats.norm.ppf(0.95))
    assert oracle_power(Shape("", lambda n: curve), n, 0.05) == pytest.approx(expected)


@pytest.mark.parametrize("noise", [Noise(0.8), Noise(profile=(3.0, 0.3))])
def test_the_neyman_pearson_test_reaches_the_bound(noise):
    """The likelihood ratio against the nearest line, simulated with the written-out covariance."""
    n, alpha, count = 40, 0.05, 40_000
    shape = Shape("", exponential(2.0, 3.0), noise)
    gap = distance_from_lines(shape, n)
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    covariance = np.outer(noise.deviation(n), noise.deviation(n)) * (noise.correlation + 0.0) ** lag
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(n), covariance, count)
    weights = np.linalg.solve(covariance, gap)
    critical = np.quantile(draws @ weights, 1.0 - alpha)
    simulated = np.mean((draws + gap) @ weights > critical)
    assert 0.1 < simulated < 0.95
    error = np.sqrt(simulated * (1.0 - simulated) / count)
    assert oracle_power(shape, n, alpha) == pytest.approx(simulated, abs=5.0 * error)


def test_nearly_normal_t_noise_has_the_normal_bound():
    curve = exponential(1.0)
    normal = oracle_power(Shape("", curve), 40, 0.05)
    nearly = oracle_power(Shape("", curve, Noise(tails=500.0)), 40, 0.05)
    assert nearly == pytest.approx(normal, abs=0.02)  # 5 deviations of 20 000 replicates


def test_heavy_tails_can_be_told_apart_better_than_normal_noise_of_the_same_size():
    curve = exponential(1.0)
    assert oracle_power(Shape("", curve, Noise(tails=3.0)), 40, 0.05) > oracle_power(
        Shape("", curve), 40, 0.05
    )
