"""The calibration's curves and noises are what their names say."""

import numpy as np
import pytest

from experiments.calibration.shapes import (
    BETWEEN,
    DECAY,
    NO_DECAY,
    Noise,
)

ALL = [*NO_DECAY, *DECAY, *BETWEEN]
NOISES = [Noise(), Noise(0.9), Noise(profile=(3.0, 0.3)), Noise(0.5, (1.0, 2.0))]


def test_names_are_unique():
    assert len({shape.name for shape in ALL}) == len(ALL)


@pytest.mark.parametrize("shape", ALL, ids=lambda shape: shape.name)
def test_windows_are_seeded_and_have_their_shape(shape):
    first = shape.sample(np.random.default_rng(3), 4, 25)
    assert first.shape == (4, 25)
    assert np.all(np.isfinite(first))
    assert np.array_equal(first, shape.sample(np.random.default_rng(3), 4, 25))
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("n", [10, 50, 1000])
@pytest.mark.parametrize("shape", DECAY, ids=lambda shape: shape.name)
def test_a_decay_drops_ten_deviations_and_flattens(shape, n):
    curve = shape.curve(n)
    assert curve[0] - curve[-1] == pytest.approx(10.0)
    assert np.all(np.diff(curve) < 0.0)
    assert np.all(np.diff(curve, 2) > 0.0)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_has_unit_mean_square_and_its_neighbours_correlate(noise):
    sample = noise.sample(np.random.default_rng(1), 20_000, 40)
    assert np.mean(sample**2) == pytest.approx(1.0, rel=0.05)
    assert np.allclose(sample.std(axis=0), noise.deviation(40), rtol=0.05)
    scaled = sample / noise.deviation(40)
    assert np.mean(scaled[:, 1:] * scaled[:, :-1]) == pytest.approx(noise.correlation, abs=0.02)


def test_heavy_tails_have_unit_variance_too():
    heavy = Noise(tails=6.0).sample(np.random.default_rng(1), 20_000, 20)
    assert np.var(heavy) == pytest.approx(1.0, rel=0.05)
    assert np.mean(heavy**4) > 4.0  # 3 for normal noise, 6 here


@pytest.mark.parametrize("noise", NOISES)
def test_whitening_inverts_the_covariance(noise):
    n = 12
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    covariance = np.outer(noise.deviation(n), noise.deviation(n)) * (noise.correlation + 0.0) ** lag
    white = noise.whiten(np.eye(n))
    assert np.allclose(white.T @ white, np.linalg.inv(covariance))
