"""The search for the largest eigenvalue, on operators of any sign, against their known spectra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.bounds.krylov import largest_eigenvalue
from lrsearch.errors import LrsearchError


def diagonal(eigenvalues):
    eigenvalues = np.asarray(eigenvalues, dtype=float)
    return lambda V: eigenvalues[:, None] * V


@pytest.mark.parametrize("block_size", [1, 2, 4])
@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.linspace(0, 1, 300) ** 4,
        np.concatenate([[2.0], np.linspace(-50, 1, 300)]),
        np.concatenate([[0.5], np.linspace(-1, 0.4, 299)]),
        np.concatenate([np.ones(20), np.zeros(280)]),
        np.concatenate([[-1.0], np.linspace(-4, -1.1, 200)]),
        [3.0],
        [-4.0],
        [1.0, 1.0, -7.0],
    ],
    ids=["psd", "far below 0", "indefinite", "repeated", "negative", "one", "minus one", "three"],
)
def test_it_finds_the_most_positive_eigenvalue(eigenvalues, block_size):
    pair = largest_eigenvalue(
        diagonal(eigenvalues), len(eigenvalues), block_size=block_size, max_basis=40
    )
    assert pair.value == pytest.approx(max(eigenvalues), rel=1e-9)
    assert pair.residual <= 1e-6 * abs(max(eigenvalues))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 4), st.floats(-5, 5))
def test_any_symmetric_matrix(seed, size, block_size, shift):
    half = np.random.default_rng(seed).standard_normal((size, size))
    A = half + half.T + shift * np.eye(size)
    expected = np.linalg.eigvalsh(A)
    pair = largest_eigenvalue(lambda V: A @ V, size, block_size=block_size, tolerance=1e-9)
    assert pair.value == pytest.approx(expected[-1], rel=1e-9, abs=1e-12 * abs(expected).max())


def test_a_value_tiny_beside_the_scale_still_has_its_own_digits():
    eigenvalues = np.concatenate([[1e-4], np.linspace(-1, 0, 200)])
    pair = largest_eigenvalue(diagonal(eigenvalues), 201, block_size=1)
    assert pair.value == pytest.approx(1e-4, rel=1e-6)


@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("size", [1, 3, 200])
def test_the_zero_operator_costs_one_pass(size, block_size):
    pair = largest_eigenvalue(np.zeros_like, size, block_size=block_size)
    assert (pair.value, pair.residual, pair.passes) == (0.0, 0.0, 1)


@pytest.mark.parametrize("unit", [1e-250, 1e-100, 1e100, 1e250])
def test_neither_tiny_nor_huge_numbers_stop_it_early(unit):
    pair = largest_eigenvalue(diagonal(unit * np.linspace(0, 1, 300) ** 4), 300)
    assert pair.value == pytest.approx(unit, rel=1e-9)


@pytest.mark.parametrize("max_basis", [2, 4, 8])
def test_a_small_basis_costs_passes_and_not_the_answer(max_basis):
    eigenvalues = np.concatenate([[1.0], np.linspace(-0.5, 0.9, 500)])
    options = {"block_size": 1, "max_passes": 1000}
    small = largest_eigenvalue(diagonal(eigenvalues), 501, max_basis=max_basis, **options)
    large = largest_eigenvalue(diagonal(eigenvalues), 501, **options)
    assert small.value == pytest.approx(1.0, rel=1e-9)
    assert small.passes > large.passes


def test_no_more_than_the_block_is_multiplied_at_once():
    widths = []

    def multiply(V):
        widths.append(V.shape[1])
        return np.linspace(-1, 1, 400)[:, None] * V

    pair = largest_eigenvalue(multiply, 400, block_size=1, max_basis=10, max_passes=30)
    assert set(widths) == {1}
    assert pair.passes == len(widths) == 30


@pytest.mark.parametrize("block_size", [1, 4])
def test_the_basis_stays_orthonormal_however_small_the_residuals_get(block_size):
    eigenvalues = np.concatenate([10.0 ** -np.arange(0, 12, 0.5), np.zeros(300)])
    seen = []

    def multiply(V):
        seen.append(V.copy())
        return eigenvalues[:, None] * V

    largest_eigenvalue(multiply, len(eigenvalues), block_size=block_size, tolerance=1e-15)
    basis = np.hstack(seen)
    assert basis.shape[1] > 4 * block_size
    assert abs(basis.T @ basis - np.eye(basis.shape[1])).max() < 1e-12


def test_equal_seeds_give_equal_values():
    operator = diagonal(np.linspace(0, 1, 500))
    one, two, other = (
        largest_eigenvalue(operator, 500, seed=seed, max_passes=4) for seed in (1, 1, 2)
    )
    assert one == two
    assert one != other


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"block_size": 0}, "block_size"),
        ({"max_basis": 7}, "max_basis must be a whole number of at least 8"),
        ({"max_passes": 0}, "max_passes"),
    ],
)
def test_bad_options_raise(options, text):
    with pytest.raises(LrsearchError, match=text):
        largest_eigenvalue(diagonal(np.ones(20)), 20, **options)


def test_an_operator_that_is_not_finite_is_told():
    with pytest.raises(LrsearchError, match="finite"):
        largest_eigenvalue(lambda V: V * np.nan, 5)
