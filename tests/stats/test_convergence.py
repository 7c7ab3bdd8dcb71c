"""The F-test: against scipy, its properties, its true level and its power."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter

from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.stats import exponential_test, fit_exponential, fit_line
from lrsearch.stats.convergence import f_test_nested

MODES = ["robust", "paper"]


def decay(n, *, exponent=5.0, noise=0.05, seed=0, drop=1.0, offset=0.3):
    rng = np.random.default_rng(seed)
    return offset + drop * np.exp(-exponent * np.arange(n) / n) + noise * rng.standard_normal(n)


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("df", [1.0, 2.5, 17.0, 497.0, 1e5])
@pytest.mark.parametrize("ratio", [1.0001, 1.1, 2.0, 50.0])
def test_the_nested_f_test_equals_scipys_upper_tail(df, ratio):
    """Degrees of freedom (1, df) are unequal: swapped ones would give other p-values."""
    statistic, pvalue = f_test_nested(ratio * 3.0, 3.0, df)
    assert statistic == pytest.approx((ratio - 1.0) * df, rel=1e-9)
    expected = stats.f.sf(statistic, 1.0, df)
    if expected > 1e-290:
        assert pvalue == pytest.approx(expected, rel=1e-8)


def test_the_upper_tail_keeps_tiny_p_values():
    # R: pf(900, 1, 50, lower.tail = FALSE), 4.4e-34: one minus a cdf would give 0
    _, pvalue = f_test_nested(1.0 + 18.0, 1.0, 50.0)
    assert pvalue == pytest.approx(stats.f.sf(900.0, 1, 50), rel=1e-8)
    assert 0.0 < pvalue < 1e-30


@pytest.mark.parametrize("full", [0.9, 1.0, 1.1])
def test_a_model_that_gains_nothing_has_no_evidence(full):
    statistic, pvalue = f_test_nested(0.9, full, 10.0)
    assert (statistic, pvalue) == (0.0, 1.0)
    assert f_test_nested(2.0, 1.0, 0.0) == (0.0, 1.0)
    assert f_test_nested(1.0, 0.9, 10.0, floor=0.2) == (0.0, 1.0)


@pytest.mark.parametrize("n", [8, 25, 300, 900])
def test_paper_mode_is_the_formula_of_algorithm_1(n):
    losses = decay(n, noise=0.3, seed=n)
    result = exponential_test(losses, mode="paper")
    linear, curved = fit_line(losses).sse, fit_exponential(losses).sse
    statistic = (linear - curved) / (curved / (n - 3))
    assert result.statistic == pytest.approx(statistic, rel=1e-9)
    assert result.pvalue == pytest.approx(stats.f.sf(statistic, 1, n - 3), rel=1e-7)
    assert (result.n, result.n_effective, result.df_num, result.df_denom) == (n, n, 1.0, n - 3)
    assert result.sse_linear == pytest.approx(linear, rel=1e-9)
    assert result.sse_exponential == pytest.approx(curved, rel=1e-9)


# ---------------------------------------------------------------- properties


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50), scale=st.floats(1e-3, 1e3))
def test_an_affine_map_of_the_losses_changes_nothing(mode, seed, shift, scale):
    losses = decay(40, noise=0.4, seed=seed)
    plain = exponential_test(losses, mode=mode)
    moved = exponential_test(shift + scale * losses, mode=mode)
    tolerance = 1e-5 * (1.0 + abs(shift) / scale)
    assert moved.pvalue == pytest.approx(plain.pvalue, rel=tolerance, abs=1e-9)
    assert moved.n_effective == pytest.approx(plain.n_effective, rel=tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(5))
def test_the_evidence_grows_with_the_drop(mode, seed):
    pvalues = [
        exponential_test(decay(60, drop=drop, noise=1.0, seed=seed), mode=mode).pvalue
        for drop in (4.0, 8.0, 16.0, 32.0, 64.0)
    ]
    assert pvalues == sorted(pvalues, reverse=True)
    assert pvalues[-1] < 1e-9


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=40))
@pytest.mark.parametrize("mode", MODES)
def test_any_numbers_are_survived(mode, losses):
    result = exponential_test(losses, mode=mode)
    assert 0.0 <= result.pvalue <= 1.0
    assert result.statistic >= 0.0
    assert result.passed is (result.pvalue < 0.05)
    assert result.n == len(losses)


# ---------------------------------------------------------------- what never passes


RISING = {
    "line": lambda x: 1.0 + x,
    "saturating rise": lambda x: 2.0 - np.exp(-6.0 * x),
    "growth": lambda x: np.exp(6.0 * x),
    "explosion": lambda x: 1.0 + 1e-6 * np.exp(20.0 * x),
    "accelerating fall": lambda x: 2.0 - np.exp(2.0 * (x - 1.0)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RISING)
@pytest.mark.parametrize("n", [8, 50, 800])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_what_rises_or_bends_the_other_way_never_passes(mode, name, n, noise):
    x = np.arange(n) / n
    losses = RISING[name](x) + noise * np.random.default_rng(n).standard_normal(n)
    result = exponential_test(losses, alpha=0.5 if noise == 0.0 else 0.01, mode=mode)
    assert not result.passed


@pytest.mark.parametrize("mode", MODES)
def test_a_line_without_noise_is_no_decay(mode):
    for n in (5, 100, 1000):
        assert not exponential_test(5.0 - np.arange(n) / n, mode=mode).passed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([], "too short"),
        ([3.0, 2.0, 1.5], "too short"),
        ([0.7] * 50, "constant"),
        ([0.0] * 50, "constant"),
        ([1.0, 0.5, np.nan, 0.2, 0.1], "not finite"),
        ([np.inf, 1.0, 0.5, 0.2, 0.1], "not finite"),
    ],
)
def test_a_degenerate_window_never_passes(mode, losses, reason):
    result = exponential_test(losses, alpha=0.999, mode=mode)
    assert (result.passed, result.pvalue, result.statistic) == (False, 1.0, 0.0)
    assert result.reason == reason
    assert np.isnan(result.sse_linear)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, np.nan])
def test_alpha_lies_inside_the_unit_interval(alpha):
    with pytest.raises(InvalidArgumentError, match="alpha must lie strictly between 0 and 1"):
        exponential_test([1.0] * 10, alpha=alpha)


def test_other_bad_arguments_are_named():
    with pytest.raises(InvalidArgumentError, match="mode must be one of 'robust', 'paper', got"):
        exponential_test([1.0] * 10, mode="notebook")
    with pytest.raises(InvalidArgumentError, match="one-dimensional"):
        exponential_test(np.ones((5, 5)))
    with pytest.raises(InvalidTypeError, match="losses"):
        exponential_test(["a"] * 5)


# ---------------------------------------------------------------- what must pass


SMOOTH = {
    "one decay": lambda x: 0.2 + 2.0 * np.exp(-5.0 * x),
    "two decays": lambda x: 0.2 + np.exp(-8.0 * x) + np.exp(-3.0 * x),
    "power law": lambda x: (1.0 + 5.0 * x) ** -0.5,
    "weak bend": lambda x: np.exp(-0.3 * x),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("n", [30, 200, 1500])
def test_smooth_decays_without_noise_pass(mode, name, n):
    assert exponential_test(SMOOTH[name](np.arange(n) / n), mode=mode).passed


@pytest.mark.parametrize("mode", MODES)
def test_huge_and_tiny_decays_pass(mode):
    for unit in (1e300, 1e-300, 1e-310):
        assert exponential_test(unit * decay(60), mode=mode).passed


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("exponent", [3.0, 5.0, 8.0])
def test_power_on_a_drop_of_ten_noise_deviations(n, exponent):
    passed = [
        exponential_test(decay(n, exponent=exponent, noise=0.1, seed=seed)).passed
        for seed in range(200)
    ]
    assert np.mean(passed) >= 0.95


# ---------------------------------------------------------------- the true level


def ar1(n, rho, rng):
    return lfilter([1.0], [1.0, -rho], rng.standard_normal(n + 200))[200:]


NULLS = {
    "independent": lambda n, rng: rng.standard_normal(n),
    "AR(1) 0.5": lambda n, rng: ar1(n, 0.5, rng),
    "AR(1) 0.9": lambda n, rng: ar1(n, 0.9, rng),
    "heavy tails": lambda n, rng: rng.standard_t(3, n),
    "falling line": lambda n, rng: -10.0 * np.arange(n) / n + rng.standard_normal(n),
}
REPLICATES = 400


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("name", NULLS)
def test_the_robust_test_keeps_its_level(name, n):
    """Accepted among 400: no more than chance allows (99.9 %) at a true level of alpha = 5 %."""
    rng = np.random.default_rng(20240 + n)
    accepted = sum(exponential_test(NULLS[name](n, rng)).passed for _ in range(REPLICATES))
    assert accepted <= stats.binom.ppf(0.999, REPLICATES, 0.05)


@pytest.mark.slow
def test_the_paper_test_is_known_to_exceed_its_level_on_correlated_noise():
    """Why robust is the default; were this to fail, the text that says so would be wrong."""
    rng = np.random.default_rng(7)
    accepted = sum(
        exponential_test(ar1(200, 0.9, rng), mode="paper").passed for _ in range(REPLICATES)
    )
    assert accepted / REPLICATES > 0.1


@pytest.mark.parametrize("first", [3.0, 4.0, 8.0])
def test_one_loud_first_loss_over_flat_noise_is_no_decay(first):
    """What a step leaves that kills a network: the first loss, then a constant prediction's."""
    passed = 0
    for seed in range(100):
        losses = 2.3 + 0.02 * np.random.default_rng(seed).standard_normal(120)
        losses[0] = first
        passed += exponential_test(losses).passed
    assert passed <= 5  # alpha


def test_a_fast_decay_over_five_steps_passes_without_its_first_loss():
    steps = np.arange(120)
    losses = 2.3 + 3.0 * np.exp(-steps / 2.0)
    losses += 0.02 * np.random.default_rng(0).standard_normal(120)
    assert exponential_test(losses).passed
