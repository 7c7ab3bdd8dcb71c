"""The tube of all rates, and the curvature's level."""

import numpy as np
import pytest

from lrsearch.stats.curvature import _arcs, curvature_of
from lrsearch.stats.exponential import exponential_of, grid_of
from lrsearch.stats.series import standardize


def curvature(losses, rate=1.0):
    series = standardize(losses, minimum=4)
    return curvature_of(series, exponential_of(series, largest_rate=rate), largest_rate=rate)


@pytest.mark.parametrize("n", [30, 200])
def test_the_arcs_add_up_to_the_length_of_the_curve(n):
    """Against a grid 20 times finer, whose chords need no arcsine."""
    exponents = grid_of(n, largest_rate=1.0)
    fine = np.geomspace(exponents[0], exponents[-1], 20 * exponents.size)
    x = np.linspace(-1.0, 1.0, n)
    lines = np.linalg.qr(np.stack([np.ones(n), x]).T)[0]
    rows = np.expm1(-np.outer(fine[fine > 1e-3], np.linspace(0.0, 1.0, n)))
    rows -= (rows @ lines) @ lines.T
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    length = np.sum(np.linalg.norm(np.diff(rows, axis=0), axis=1))
    assert float(np.sum(_arcs(n, 1.0))) == pytest.approx(length, rel=0.02)


def test_long_windows_have_the_angles_of_fast_decays_in_closed_form():
    long, tabulated = _arcs(2000, 1.0), _arcs(512, 1.0)
    assert np.all(long > -1e-12)
    # Both grids are 8 to the decade, nearly: twice the reach adds log10(2000 / 512) decades.
    step = np.log(10.0) / 8.0
    angle = np.arccos(1.0 / np.cosh(0.5 * step))
    more = np.log10(1999.0 / 511.0) * 8.0 * angle
    assert float(long.sum()) == pytest.approx(float(tabulated.sum()) + more, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_clear_fall_pays_less_for_the_choice_of_the_rate_than_a_flat_window(seed):
    """The same curvature, with and without a slope beside it."""
    n = 100
    x = np.linspace(0.0, 1.0, n)
    noise = np.random.default_rng(seed).standard_normal(n)
    bend = 12.0 * (x - 0.5) ** 2
    assert curvature(bend - 100.0 * x + noise).pvalue < curvature(bend - 5.0 * x + noise).pvalue


def test_a_downward_bend_has_no_evidence():
    x = np.linspace(0.0, 1.0, 60)
    noise = 0.05 * np.random.default_rng(1).standard_normal(60)
    result = curvature(-10.0 * x**3 + noise)
    assert result.statistic == 0.0
    assert result.pvalue > 0.5
