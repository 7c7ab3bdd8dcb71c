"""The exponential fit: global, signed, and the same on every scale."""

import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import OptimizeWarning, curve_fit

from lrsearch.errors import InvalidArgumentError
from lrsearch.stats import exponential, fit_exponential, fit_line
from lrsearch.stats.series import standardize


def noisy_decay(n, *, exponent, noise, seed, amplitude=2.0, offset=0.3):
    rng = np.random.default_rng(seed)
    curve = offset + amplitude * np.exp(-exponent * np.arange(n) / n)
    return curve + noise * rng.standard_normal(n)


def sse_of_curve_fit(losses, start):
    """SSE that scipy's local optimizer reaches from a start that is good already."""
    steps = np.arange(losses.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            found, _ = curve_fit(
                lambda t, a, b, c: a * np.exp(-b * t) + c,
                steps,
                losses,
                p0=start,
                bounds=([0.0, 1e-9, -np.inf], np.inf),
                max_nfev=400,
            )
        except RuntimeError:  # no convergence
            return np.inf
    a, b, c = found
    return float(np.sum((a * np.exp(-b * steps) + c - losses) ** 2))


@pytest.mark.parametrize("n", [20, 200, 700, 3000])  # dense up to 512, in blocks beyond
@pytest.mark.parametrize("exponent", [0.5, 5.0, 40.0])
@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_no_local_optimizer_finds_a_better_decay(n, exponent, noise):
    for seed in range(3):
        losses = noisy_decay(n, exponent=exponent, noise=noise, seed=seed)
        ours = fit_exponential(losses)
        for start in ((2.0, exponent / n, 0.3), (ours.amplitude, ours.rate, ours.offset)):
            scipy = sse_of_curve_fit(losses, np.maximum(start, [1e-6, 1e-8, -1e9]))
            assert ours.sse <= scipy * (1.0 + 1e-6)


@pytest.mark.parametrize("n", [12, 60, 513])
def test_no_rate_of_a_fine_grid_does_better_on_pure_noise(n):
    """With noise alone the error has many valleys; the deepest must be found."""
    x = np.arange(n)
    for seed in range(8):
        losses = np.random.default_rng(seed).standard_normal(n)
        z = losses - losses.mean()
        best = z @ z
        for rate in np.geomspace(1e-5, 40.0 * (n - 1), 4000) / (n - 1):
            e = np.expm1(-rate * x)
            e -= e.mean()
            best = min(best, z @ z - max(e @ z, 0.0) ** 2 / (e @ e))
        assert fit_exponential(losses).sse <= best * (1.0 + 1e-6)


@pytest.mark.parametrize("n", [513, 2000])
def test_sums_in_blocks_equal_the_written_out_ones(n, monkeypatch):
    for seed, exponent in enumerate((0.01, 1.0, 30.0, n * 3.0)):
        losses = noisy_decay(n, exponent=exponent, noise=0.1, seed=seed)
        blocked = fit_exponential(losses)
        monkeypatch.setattr(exponential, "_DENSE", 10**9)
        dense = fit_exponential(losses)
        monkeypatch.undo()
        assert blocked.sse == pytest.approx(dense.sse, rel=1e-9)
        if 1.0 <= exponent <= 30.0:  # the others are a line, or over within a step
            assert blocked.rate == pytest.approx(dense.rate, rel=1e-3)


def test_explained_is_the_same_by_both_paths(monkeypatch):
    z = standardize(np.random.default_rng(3).standard_normal(600), minimum=3).values
    exponents = np.geomspace(1e-3, 20000.0, 60)
    blocked = exponential._explained(z, exponents, signed=False)
    monkeypatch.setattr(exponential, "_DENSE", 10**9)
    np.testing.assert_allclose(
        blocked, exponential._explained(z, exponents, signed=False), rtol=1e-6, atol=1e-9 * (z @ z)
    )


@pytest.mark.parametrize("n", [10, 100, 2000])
def test_an_exact_decay_is_recovered(n):
    steps = np.arange(n)
    fit = fit_exponential(2.0 * np.exp(-5.0 * steps / n) + 0.5)
    assert (fit.amplitude, fit.rate, fit.offset) == pytest.approx((2.0, 5.0 / n, 0.5), rel=1e-6)
    np.testing.assert_allclose(fit.predict(steps), 2.0 * np.exp(-5.0 * steps / n) + 0.5, rtol=1e-6)


@given(
    st.integers(0, 10**6),
    st.integers(4, 80),
    st.floats(-100.0, 100.0),
    st.floats(0.01, 100.0),
)
def test_shift_and_scale_pass_through(seed, n, shift, scale):
    losses = noisy_decay(n, exponent=4.0, noise=0.5, seed=seed)
    plain, moved = fit_exponential(losses), fit_exponential(shift + scale * losses)
    assert moved.sse == pytest.approx(scale**2 * plain.sse, rel=1e-6, abs=1e-20 * (shift**2 + 1))
    steps = np.arange(n)
    np.testing.assert_allclose(
        moved.predict(steps),
        shift + scale * plain.predict(steps),
        atol=1e-3 * scale * np.ptp(losses),
    )


@pytest.mark.parametrize("unit", [1e300, 1e-300])
def test_huge_and_tiny_losses_are_fitted_all_the_same(unit):
    losses = noisy_decay(60, exponent=4.0, noise=0.05, seed=0)
    plain, scaled = fit_exponential(losses), fit_exponential(unit * losses)
    assert scaled.rate == pytest.approx(plain.rate, rel=1e-6)
    assert scaled.amplitude == pytest.approx(unit * plain.amplitude, rel=1e-6, abs=0.0)


def test_subnormal_losses_are_survived():
    fit = fit_exponential(1e-310 * np.exp(-np.arange(20) / 5.0))
    assert fit.rate == pytest.approx(0.2, rel=1e-3)


def test_a_constant_is_its_own_offset():
    fit = fit_exponential([0.7] * 10)
    assert (fit.amplitude, fit.offset, fit.sse) == (0.0, 0.7, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_gives_nan_fields(bad):
    fit = fit_exponential([1.0, 0.5, bad, 0.2])
    assert fit.n == 4
    assert np.isnan([fit.amplitude, fit.rate, fit.offset, fit.sse]).all()


def test_a_million_points_take_a_moment():
    n = 10**6
    losses = noisy_decay(n, exponent=6.0, noise=0.1, seed=1)
    start = time.perf_counter()
    fit = fit_exponential(losses)
    assert time.perf_counter() - start < 10.0
    assert fit.rate * n == pytest.approx(6.0, rel=0.01)
    assert fit.sse == pytest.approx(0.01 * n, rel=0.01)


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=40))
def test_only_decays_are_fitted_by_default(losses):
    fit = fit_exponential(losses)
    assert fit.amplitude >= 0.0
    assert fit.rate > 0.0
    spread = float(np.sum((np.asarray(losses) - np.mean(losses)) ** 2))
    assert fit.sse <= spread * (1.0 + 1e-9) + 1e-18


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=40))
def test_more_freedom_never_fits_worse(losses):
    signed, free = fit_exponential(losses), fit_exponential(losses, decay_only=False)
    size = float(np.sum((np.asarray(losses) - np.mean(losses)) ** 2))
    assert free.sse <= signed.sse + 1e-9 * size


@pytest.mark.parametrize(
    ("amplitude", "exponent"), [(-2.0, 5.0), (0.1, -4.0), (-0.1, -4.0), (2.0, 5.0)]
)
@pytest.mark.parametrize("n", [50, 700])
def test_rises_and_growth_are_found_on_request_only(amplitude, exponent, n):
    losses = 1.0 + amplitude * np.exp(-exponent * np.arange(n) / n)
    free = fit_exponential(losses, decay_only=False)
    assert (free.amplitude, free.rate) == pytest.approx((amplitude, exponent / n), rel=1e-5)
    if amplitude < 0.0 < exponent or amplitude > 0.0 > exponent:  # it rises
        assert fit_exponential(losses).amplitude == 0.0


def test_a_falling_line_is_the_limit_of_slow_decays():
    losses = 3.0 - 0.01 * np.arange(100) + 0.1 * np.random.default_rng(0).standard_normal(100)
    assert fit_exponential(losses, decay_only=False).sse <= fit_line(losses).sse * (1 + 1e-6)


@pytest.mark.parametrize("short", [[], [1.0], [1.0, 2.0]])
def test_too_few_points_are_an_error(short):
    with pytest.raises(InvalidArgumentError, match="at least 3 points"):
        fit_exponential(short)


def test_the_largest_rate_is_kept():
    losses = np.r_[9.0, np.full(40, 2.0)] + 0.01 * np.cos(np.arange(41.0) ** 2)
    free, kept = fit_exponential(losses), fit_exponential(losses, largest_rate=1.0)
    assert free.rate > 2.0
    assert kept.rate == pytest.approx(1.0)
    assert kept.sse > free.sse
