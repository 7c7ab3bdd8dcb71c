"""lambda_max against numpy's dense eigenvalues on every shape and kind of data, and its memory."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.bounds import covariance_spectrum, largest_covariance_eigenvalue
from lrsearch.bounds.krylov import BLOCK_SIZE, MAX_BASIS

LIMITS = {"dense": 10**9, "matrix_free": 0}

SHAPES = {
    "wide": (20, 300),
    "tall": (3000, 15),
    "square": (60, 60),
    "one feature": (50, 1),
    "two samples": (2, 40),
}


def reference(X, *, standardize, bias):
    """Plainly: standardise as numpy does, X^T X / (s - 1), all eigenvalues."""
    X = np.asarray(X, dtype=np.float64)
    if standardize:
        constant = (X[0] == X).all(axis=0)
        X = np.where(constant, 0.0, (X - X.mean(axis=0)) / np.where(constant, 1.0, X.std(axis=0)))
    if bias:
        X = np.column_stack([X, np.ones(len(X))])
    return np.linalg.eigvalsh(X.T @ X / (len(X) - 1))[-1]


def make_data(kind, shape, dtype, seed):
    """Correlated features of very different sizes, with an offset each."""
    rng = np.random.default_rng(seed)
    samples, features = shape
    X = rng.standard_normal((samples, features)) @ rng.standard_normal((features, features))
    if kind == "rank deficient":
        rank = max(1, min(shape) // 4)
        X = rng.standard_normal((samples, rank)) @ rng.standard_normal((rank, features))
    X = X * 10.0 ** rng.uniform(-2, 2, features) + rng.uniform(-5, 5, features)
    if kind == "constant features":
        X[:, ::3] = rng.uniform(-5, 5, len(X[0, ::3]))
        X[:, 1::3] = 0.0
    return X.astype(dtype)


@pytest.mark.parametrize("path", LIMITS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["full rank", "rank deficient", "constant features"])
def test_it_equals_dense_eigenvalues(monkeypatch, path, dtype, shape, kind):
    monkeypatch.setattr("lrsearch.bounds.covariance.DENSE_FEATURES", LIMITS[path])
    for seed in range(3):
        X = make_data(kind, SHAPES[shape], dtype, seed)
        for standardize in (True, False):
            for bias in (True, False):
                options = {"standardize": standardize, "bias": bias}
                expected = reference(X, **options)
                for inputs in (X, torch.from_numpy(X)):
                    spectrum = covariance_spectrum(inputs, **options)
                    assert spectrum.value == pytest.approx(expected, rel=1e-6), (seed, options)
                    assert spectrum.residual <= 1e-6 * expected
                assert (spectrum.method == "dense") == (path == "dense")


# Ordinary sizes, zeros and repeats, as real tables have them.
numbers = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.integers(-100, 100).map(lambda i: i / 7))


@st.composite
def tables(draw):
    samples, features = draw(st.integers(2, 12)), draw(st.integers(1, 12))
    row = st.lists(numbers, min_size=features, max_size=features)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return np.array(draw(st.lists(row, min_size=samples, max_size=samples)), dtype=dtype)


@settings(max_examples=150, deadline=None)
@given(tables(), st.booleans(), st.booleans(), st.sampled_from(sorted(LIMITS)))
def test_any_small_table(X, standardize, bias, path):
    expected = reference(X, standardize=standardize, bias=bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrsearch.bounds.covariance.DENSE_FEATURES", LIMITS[path])
        value = largest_covariance_eigenvalue(X, standardize=standardize, bias=bias)
    assert value == pytest.approx(expected, rel=1e-6, abs=0)


def peak_bytes(features, samples=200):
    """The largest sum of numpy's allocations beside the data, in a search that has to restart."""
    X = np.random.default_rng(0).standard_normal((samples, features)).astype(np.float32)
    tracemalloc.start()
    spectrum = covariance_spectrum(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spectrum.method == "lanczos"
    assert spectrum.passes > MAX_BASIS // BLOCK_SIZE + 1
    return peak


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of rows are bounded by themselves; without them, what is left is the search's."""
    for name in ("blocks.BLOCK_ELEMENTS", "blocks.CACHED_ELEMENTS", "covariance.CACHED_ELEMENTS"):
        monkeypatch.setattr(f"lrsearch.bounds.{name}", 1)


def test_memory_grows_with_the_features_and_never_with_their_square(small_blocks):
    narrow, wide = 4_000, 16_000
    small, large = peak_bytes(narrow), peak_bytes(wide)
    assert large < 1.1 * (wide / narrow) * small
    # n x k: two bases of 64 vectors in float64, a restart's copy of 16, some blocks of 4
    assert large < wide * 8 * (2 * 64 + 16 + 8 * 4)
    assert large < wide**2 * 8 / 80


def test_memory_does_not_grow_with_the_samples(small_blocks):
    assert peak_bytes(2_000, samples=800) < 1.1 * peak_bytes(2_000, samples=200)
