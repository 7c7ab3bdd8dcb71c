"""The least-squares line against scipy and statsmodels, and on losses that are hard to add up."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.stats import fit_line

FINITE = st.floats(-1e6, 1e6)
CURVES = st.lists(FINITE, min_size=3, max_size=60)


@pytest.mark.parametrize("n", [3, 4, 30, 1001])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scipy_and_statsmodels(n, seed):
    rng = np.random.default_rng(seed)
    losses = 5.0 - 0.02 * np.arange(n) + rng.standard_normal(n)
    fit = fit_line(losses)
    scipy = stats.linregress(np.arange(n), losses)
    ols = sm.OLS(losses, sm.add_constant(np.arange(n))).fit()
    assert fit.n == n
    assert fit.slope == pytest.approx(scipy.slope, rel=1e-9)
    assert fit.intercept == pytest.approx(scipy.intercept, rel=1e-9)
    assert fit.slope_stderr == pytest.approx(scipy.stderr, rel=1e-9)
    assert fit.sse == pytest.approx(ols.ssr, rel=1e-9)
    assert fit.slope_stderr == pytest.approx(ols.bse[1], rel=1e-9)


@given(CURVES, st.floats(-1e3, 1e3), st.sampled_from([1e-3, 0.5, -2.0, 1e3]))
def test_shift_and_scale_pass_through(losses, shift, scale):
    plain = fit_line(losses)
    moved = fit_line(shift + scale * np.asarray(losses))
    size = max(1.0, np.max(np.abs(losses)) * abs(scale), abs(shift))
    assert moved.slope == pytest.approx(scale * plain.slope, rel=1e-9, abs=1e-12 * size)
    assert moved.intercept == pytest.approx(
        shift + scale * plain.intercept, rel=1e-9, abs=1e-11 * size
    )
    assert moved.sse == pytest.approx(scale**2 * plain.sse, rel=1e-6, abs=1e-20 * size**2)


@given(CURVES)
def test_a_reversed_curve_has_the_opposite_slope(losses):
    size = max(1.0, float(np.max(np.abs(losses))))
    assert fit_line(losses[::-1]).slope == pytest.approx(-fit_line(losses).slope, abs=1e-12 * size)


def test_small_changes_around_a_large_mean_keep_their_digits():
    # 2^40 + a line of steps 2^-10: exact in float64, lost in sums of squares of the losses
    losses = 2.0**40 - 2.0**-10 * np.arange(100)
    fit = fit_line(losses)
    assert fit.slope == pytest.approx(-(2.0**-10), rel=1e-12)


@pytest.mark.parametrize("unit", [1e300, 1e-300])
def test_huge_and_tiny_losses_neither_overflow_nor_underflow(unit):
    fit = fit_line(unit * np.array([3.0, 2.5, 1.0, 0.5]))
    plain = fit_line([3.0, 2.5, 1.0, 0.5])
    assert fit.slope == pytest.approx(unit * plain.slope, rel=1e-12, abs=0.0)
    assert fit.slope_stderr == pytest.approx(unit * plain.slope_stderr, rel=1e-12, abs=0.0)


def test_subnormal_losses_are_survived():
    fit = fit_line(1e-310 * np.array([3.0, 2.0, 1.0]))
    assert fit.slope == pytest.approx(-1e-310, rel=1e-6, abs=0.0)


def test_a_constant_has_no_slope_and_an_exact_line_no_error():
    constant = fit_line([0.1] * 7)
    assert (constant.slope, constant.intercept, constant.sse) == (0.0, 0.1, 0.0)
    line = fit_line(0.3 - 0.1 * np.arange(50))
    assert line.sse == 0.0
    assert line.slope == pytest.approx(-0.1, rel=1e-12)


def test_two_points_have_a_line_but_no_standard_error():
    fit = fit_line([1.0, 3.0])
    assert (fit.slope, fit.intercept) == (2.0, 1.0)
    assert np.isnan(fit.slope_stderr)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_gives_nan_fields(bad):
    fit = fit_line([1.0, bad, 2.0, 3.0])
    assert fit.n == 4
    assert np.isnan([fit.slope, fit.intercept, fit.sse, fit.slope_stderr]).all()


def test_predict_is_the_line():
    fit = fit_line([3.0, 2.0, 1.0])
    np.testing.assert_allclose(fit.predict(np.array([0.0, 10.0])), [3.0, -7.0])


@pytest.mark.parametrize("short", [[], [1.0]])
def test_too_few_points_are_an_error(short):
    with pytest.raises(InvalidArgumentError, match="at least 2 points"):
        fit_line(short)


def test_bad_shapes_and_types_are_named():
    with pytest.raises(InvalidArgumentError, match=r"one-dimensional, got shape \(2, 2\)"):
        fit_line([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(InvalidTypeError, match="sequence of numbers"):
        fit_line(["a", "b"])
