"""The slope test: against scipy in paper mode, a shown plateau in robust mode."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter

from lrsearch.errors import InvalidArgumentError
from lrsearch.stats import plateau_test

MODES = ["robust", "paper"]


def ar1(n, rho, rng):
    return lfilter([1.0], [1.0, -rho], rng.standard_normal(n + 200))[200:] * np.sqrt(1 - rho**2)


@pytest.mark.parametrize("n", [3, 4, 30, 777])
@pytest.mark.parametrize("slope", [-0.5, -0.01, 0.0, 0.3])
def test_paper_mode_equals_scipys_one_sided_regression(n, slope):
    losses = slope * np.arange(n) + np.random.default_rng(n).standard_normal(n)
    ours = plateau_test(losses, mode="paper")
    scipy = stats.linregress(np.arange(n), losses, alternative="less")
    assert ours.pvalue == pytest.approx(scipy.pvalue, rel=1e-7)
    assert ours.slope == pytest.approx(scipy.slope, rel=1e-9)
    assert ours.slope_stderr == pytest.approx(scipy.stderr, rel=1e-9)
    assert ours.statistic == pytest.approx(scipy.slope / scipy.stderr, rel=1e-9)
    steepest = scipy.slope - stats.t.ppf(0.95, n - 2) * scipy.stderr
    assert ours.steepest == pytest.approx(steepest, rel=1e-7)
    assert ours.verdict == ("descending" if scipy.pvalue < 0.05 else "plateau")


@given(st.lists(st.floats(-1e6, 1e6), max_size=40), st.sampled_from([0.01, 0.05, 0.5]))
def test_paper_mode_is_never_undecided(losses, alpha):
    result = plateau_test(losses, alpha=alpha, mode="paper")
    assert result.verdict in ("descending", "plateau")
    assert (result.verdict == "descending") == (result.pvalue < alpha)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40))
@pytest.mark.parametrize("mode", MODES)
def test_any_numbers_are_survived(mode, losses):
    result = plateau_test(losses, mode=mode)
    assert result.verdict in ("descending", "plateau", "undecided")
    assert 0.0 <= result.pvalue <= 1.0


@pytest.mark.parametrize("mode", MODES)
def test_an_exact_line_is_certain_of_its_direction(mode):
    falling = plateau_test(3.0 - 0.5 * np.arange(5), mode=mode)
    rising = plateau_test(3.0 + 0.5 * np.arange(5), mode=mode)
    assert (falling.verdict, falling.pvalue, falling.statistic) == ("descending", 0.0, -np.inf)
    assert (rising.verdict, rising.pvalue, rising.statistic) == ("plateau", 1.0, np.inf)
    assert falling.slope == pytest.approx(-0.5)


@pytest.mark.parametrize("mode", MODES)
def test_a_constant_window_is_a_plateau(mode):
    result = plateau_test([0.3] * 10, mode=mode)
    assert (result.verdict, result.slope, result.pvalue) == ("plateau", 0.0, 1.0)


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 0.5], [1.0, np.nan, 0.5, 0.2], [np.inf] * 9])
def test_nothing_to_test_is_undecided_and_a_plateau_on_paper(losses):
    robust, paper = plateau_test(losses), plateau_test(losses, mode="paper")
    assert (robust.verdict, robust.pvalue) == ("undecided", 1.0)
    assert (paper.verdict, paper.pvalue) == ("plateau", 1.0)
    assert np.isnan(robust.statistic)


@given(st.integers(0, 10**6), st.floats(0.01, 100.0))
def test_the_unit_of_the_loss_plays_no_part(seed, scale):
    losses = 1.0 + 0.1 * np.random.default_rng(seed).standard_normal(40)
    plain, scaled = plateau_test(losses), plateau_test(scale * losses)
    assert scaled.pvalue == pytest.approx(plain.pvalue, rel=1e-8)
    assert scaled.verdict == plain.verdict
    assert scaled.slope == pytest.approx(scale * plain.slope, rel=1e-8, abs=1e-15 * scale)


def test_stationary_noise_is_undecided_while_short_and_a_plateau_when_long():
    def verdicts(n):
        rng = np.random.default_rng(5)
        return [plateau_test(1.0 + 0.2 * rng.standard_normal(n)).verdict for _ in range(100)]

    short, long = verdicts(30), verdicts(3000)
    assert short.count("undecided") > 60
    assert long.count("plateau") >= 90
    assert long.count("descending") <= 12


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.8])
@pytest.mark.parametrize("n", [100, 1000])
def test_a_descent_that_matters_is_seldom_called_a_plateau(rho, n):
    """The fall is just the margin, 5 % of the mean: "plateau" at most alpha of the time."""
    rng = np.random.default_rng(n)
    trend = 1.0 - 0.05 * (np.arange(n) - (n - 1) / 2.0) / n
    wrong = sum(
        plateau_test(trend + 0.05 * ar1(n, rho, rng), margin=0.05).verdict == "plateau"
        for _ in range(400)
    )
    assert wrong <= stats.binom.ppf(0.999, 400, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_flat_noise_is_seldom_called_a_descent(rho):
    rng = np.random.default_rng(3)
    wrong = sum(
        plateau_test(1.0 + 0.2 * ar1(200, rho, rng)).verdict == "descending" for _ in range(400)
    )
    assert wrong <= stats.binom.ppf(0.999, 400, 0.05)


def test_a_wider_margin_finds_plateaus_sooner():
    losses = 1.0 + 0.1 * np.random.default_rng(1).standard_normal(100)
    assert plateau_test(losses, margin=0.01).verdict == "undecided"
    assert plateau_test(losses, margin=0.5).verdict == "plateau"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.0}, "alpha must lie strictly between 0 and 1, got 1.0"),
        ({"mode": "x"}, "mode must be one of 'robust', 'paper', got 'x'"),
        ({"margin": 0.0}, "margin must be a positive finite number, got 0.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        plateau_test([1.0] * 5, **arguments)
