"""The authors' published test, defects and all."""

import numpy as np
import pytest
from scipy import stats

from experiments.exptest.notebook_fit import notebook_f_test, notebook_line_f_test
from lrsearch.stats import exponential_test


def decay(n, seed, noise=0.05):
    """A clean decay: four e-foldings in the window, noise 5 % of the drop."""
    rng = np.random.default_rng(seed)
    return 0.5 + 1.8 * np.exp(-4.0 * np.arange(n) / n) + 1.8 * noise * rng.standard_normal(n)


def accepted(n, runs):
    def passes(seed):
        try:
            return notebook_f_test(decay(n, seed))[1] < 0.05
        except RuntimeError:
            return False

    return sum(passes(seed) for seed in range(runs)) / runs


def test_it_loses_its_power_as_the_window_grows():
    """Measured before (algorithms.md, 3): 0.79 / 0.17 / 0.00 at N = 20 / 100 / 500."""
    assert 0.6 < accepted(20, 100) < 0.95
    assert accepted(100, 60) < 0.4
    assert accepted(500, 60) == 0.0
    assert all(exponential_test(decay(500, seed), mode="paper").passed for seed in range(10))


def test_the_fitted_curve_jumps_once_the_exponent_passes_one():
    """On 2 exp(-t) for t <= 1, then 0, its model is exact: the jump is in the model."""
    x = np.arange(30.0)
    losses = np.where(x <= 1.0, 2.0 * np.exp(-x), 0.0)
    statistic, pvalue = notebook_f_test(losses)
    assert statistic > 1e6
    assert pvalue == 0.0
    smooth = exponential_test(losses, mode="paper").sse_exponential
    assert smooth > 1e-3


def test_the_p_value_is_one_minus_the_cdf_on_one_and_n_minus_three():
    statistic, pvalue = notebook_f_test(decay(20, 3))
    assert pvalue == pytest.approx(stats.f.sf(statistic, 1, 17), rel=1e-6, abs=1e-15)


def test_three_losses_are_too_few_for_four_parameters():
    with pytest.raises(TypeError):
        notebook_f_test([3.0, 2.0, 1.0])


@pytest.mark.parametrize("seed", range(3))
def test_the_line_variant_never_accepts(seed):
    statistic, pvalue = notebook_line_f_test(decay(200, seed))
    assert (statistic, pvalue) == (0.0, 1.0)
