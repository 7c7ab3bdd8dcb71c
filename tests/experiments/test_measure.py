"""The calibration's cells, and the claims of docs/statistics.md on its key cells."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.calibration.measure import cells, measure, watch
from experiments.calibration.shapes import SLOPES
from lrsearch.controllers.settings import ExpTestSettings

REPLICATES = 400
# No more than chance allows (99.9 %) at a true level of 5 %, no less at a true power of 95 %.
MOST = stats.binom.ppf(0.999, REPLICATES, 0.05)
FEWEST = stats.binom.ppf(0.001, REPLICATES, 0.95)


def cell(group, shape, n, test="robust"):
    found = {"group": group, "shape": shape, "n": n, "test": test}
    assert found in cells("full")
    return found


@pytest.mark.parametrize("scale", ["full", "quick"])
def test_cells_are_distinct_plain_data(scale):
    found = cells(scale)
    assert len({json.dumps(each, sort_keys=True) for each in found}) == len(found)
    assert {each["group"] for each in found} == {"no decay", "decay", "between", "search", "watch"}
    assert {each["test"] for each in found} == {"notebook", "plain", "robust", "plateau"}


def test_the_quick_cells_are_among_the_full_ones():
    full = cells("full")
    assert all(each in full for each in cells("quick"))


def test_a_measurement_is_repeatable_and_seeded():
    flat = cell("no decay", "flat", 20, "plain")
    first = measure(flat, replicates=60, alpha=0.3)
    assert measure(flat, replicates=60, alpha=0.3) == pytest.approx(first, nan_ok=True)
    shares = {measure(flat, replicates=60, seed=s, alpha=0.3)["share"] for s in range(6)}
    assert len(shares) > 1


def test_another_process_draws_the_same_numbers():
    """Python's own hash would not."""
    code = (
        "from experiments.calibration.measure import measure;"
        "c={'group':'no decay','shape':'flat','n':20,'test':'plain'};"
        "print(measure(c, replicates=50, alpha=0.3)['hits'])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    here = measure(cell("no decay", "flat", 20, "plain"), replicates=50, alpha=0.3)
    assert int(done.stdout) == here["hits"]


def test_the_interval_is_wilsons():
    result = measure(cell("decay", "exponent 4", 50), replicates=50)
    interval = stats.binomtest(result["hits"], 50).proportion_ci(method="wilson")
    assert (result["low"], result["high"]) == (interval.low, interval.high)
    assert result["share"] == result["hits"] / 50
    assert result["oracle"] == pytest.approx(1.0)


def test_the_oracle_is_asked_for_decays_alone():
    assert np.isnan(measure(cell("no decay", "flat", 20), replicates=2)["oracle"])


NOT_A_DECAY = [
    "linear fall of 10",
    "linear fall of 10, AR(1) 0.9",
    "linear fall of 10, AR(1) 0.95",
    "flat, AR(1) 0.5",
    "flat, fading noise",
    "flat, t3 noise",
    "one loud first loss of 100",
]


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("shape", NOT_A_DECAY)
def test_what_is_no_decay_is_accepted_at_most_alpha_of_the_time(shape, n):
    assert measure(cell("no decay", shape, n), replicates=REPLICATES)["hits"] <= MOST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "n"),
    [
        ("exponent 1", 100),
        ("exponent 2", 50),
        ("exponent 20", 50),
        ("exponent 4, t3 noise", 50),
        ("exponent 4, fading noise", 50),
        ("exponent 4, AR(1) 0.5", 100),
        ("exponent 4, AR(1) 0.8", 200),
        ("exponents 20 and 2", 50),
        ("power law 0.5", 50),
    ],
)
def test_decays_of_ten_deviations_are_found(shape, n):
    assert measure(cell("decay", shape, n), replicates=REPLICATES)["hits"] >= FEWEST


@pytest.mark.slow
def test_the_robust_test_is_near_the_oracle_where_little_is_possible():
    """Exponent 1 at 50 points: the oracle, which knows the curve and the noise, has 0.85."""
    result = measure(cell("decay", "exponent 1", 50), replicates=REPLICATES)
    assert result["oracle"] == pytest.approx(0.852, abs=0.001)
    assert result["high"] < 0.852
    assert result["low"] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["flat", "flat, AR(1) 0.95", "flat, fading noise"])
def test_a_whole_search_on_a_flat_curve_keeps_alpha(shape):
    assert measure(cell("search", shape, 50), replicates=REPLICATES)["hits"] <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["", ", AR(1) 0.95", ", fading noise"])
def test_a_whole_watch_calls_a_slope_that_matters_a_plateau_at_most_alpha_of_the_time(noise):
    watched = cell("watch", "falls by the margin" + noise, 50, "plateau")
    assert measure(watched, replicates=REPLICATES)["hits"] <= MOST


def test_a_quiet_plateau_is_called_one_at_the_first_look():
    slope = SLOPES[0]
    losses = 1.0 + 0.001 * slope.noise.sample(np.random.default_rng(0), 1, 1600)[0]
    assert slope.name == "plateau"
    assert watch(ExpTestSettings(), losses, 50) in (50, 100)


def test_a_fall_is_never_called_a_plateau():
    losses = 2.0 - np.arange(1600) / 2000.0
    assert watch(ExpTestSettings(), losses, 50) is None
