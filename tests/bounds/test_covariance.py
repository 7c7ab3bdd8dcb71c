"""The largest eigenvalue and the bounds that rest on it, against dense eigensolvers and descent."""

import doctest
import tracemalloc
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lrsearch.bounds import (
    LargestEigenvalue,
    bound_from_eigenvalue,
    covariance_spectrum,
    largest_covariance_eigenvalue,
    max_learning_rate,
    mean_absolute_sum,
)
from lrsearch.bounds.krylov import largest_eigenvalue
from lrsearch.errors import LrsearchError


def correlated(samples=200, features=12, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((features, features))
    return rng.standard_normal((samples, features)) @ mixing + rng.uniform(-5, 5, features)


def reference(X, *, standardize=True, bias=False):
    """Plainly: standardise as numpy does, X^T X / (s - 1), all eigenvalues."""
    X = np.asarray(X, dtype=np.float64).reshape(len(X), -1)
    if standardize:
        deviation = X.std(axis=0)
        X = (X - X.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    if bias:
        X = np.column_stack([X, np.ones(len(X))])
    return np.linalg.eigvalsh(X.T @ X / (len(X) - 1))[-1]


@pytest.fixture
def matrix_free(monkeypatch):
    monkeypatch.setattr("lrsearch.bounds.covariance.DENSE_FEATURES", 0)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_it_equals_a_dense_eigensolver(standardize, bias):
    X = correlated()
    spectrum = covariance_spectrum(X, standardize=standardize, bias=bias)
    expected = reference(X, standardize=standardize, bias=bias)
    assert spectrum.value == pytest.approx(expected, rel=1e-12)
    assert spectrum.residual <= 1e-10 * spectrum.value
    assert (spectrum.samples, spectrum.features, spectrum.method) == (200, 12, "dense")


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(200, 12), (30, 100), (150, 3), (40, 1)])
def test_matrix_free_search_equals_a_dense_eigensolver(matrix_free, standardize, bias, shape):
    X = correlated(*shape)
    spectrum = covariance_spectrum(X, standardize=standardize, bias=bias)
    expected = reference(X, standardize=standardize, bias=bias)
    assert spectrum.method == "lanczos"
    assert spectrum.value == pytest.approx(expected, rel=1e-9)


def test_a_small_gap_is_resolved_across_restarts():
    eigenvalues = np.concatenate([[1.0, 0.999], np.linspace(0, 0.98, 1000)])
    pair = largest_eigenvalue(lambda V: eigenvalues[:, None] * V, len(eigenvalues))
    assert pair.value == pytest.approx(1.0, rel=1e-8)
    assert pair.residual <= 1e-6


def test_a_search_that_runs_out_says_so_in_its_residual():
    eigenvalues = np.linspace(0, 1, 500)
    pair = largest_eigenvalue(lambda V: eigenvalues[:, None] * V, 500, max_passes=2)
    assert pair.passes == 2
    assert pair.residual > 1e-6
    assert abs(pair.value - 1.0) < 0.5


def test_the_zero_matrix_has_eigenvalue_zero():
    assert largest_eigenvalue(np.zeros_like, 20).value == 0.0


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
@pytest.mark.parametrize("limit", [0, 1024], ids=["matrix_free", "dense"])
def test_every_kind_of_input_gives_the_same_value(monkeypatch, limit):
    monkeypatch.setattr("lrsearch.bounds.covariance.DENSE_FEATURES", limit)
    X = correlated(101, 24)
    T = torch.from_numpy(X)
    pairs = TensorDataset(T.reshape(101, 2, 3, 4), torch.zeros(101))

    class Again:
        def __iter__(self):
            yield from (X[:50], X[50:])

    inputs = {
        "images": X.reshape(101, 2, 3, 4),
        "fortran order": np.asfortranarray(X),
        "tensor": T.requires_grad_(),
        "dataset of pairs": pairs,
        "shuffled loader of pairs": DataLoader(pairs, batch_size=7, shuffle=True),
        "loader": DataLoader(T.detach(), batch_size=16),
        "list of batches": [X[:3], X[3:90], X[90:]],
        "list of lists": [[X[:3], None], [X[3:], None]],
        "re-iterable": Again(),
        "generator": (X[i : i + 10] for i in range(0, 101, 10)),
    }
    expected = reference(X)
    for name, value in inputs.items():
        spectrum = covariance_spectrum(value)
        assert spectrum.value == pytest.approx(expected, rel=1e-9), name
        assert spectrum.samples == 101, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8])
def test_tensors_of_any_real_dtype_are_taken(dtype):
    T = (torch.rand(60, 5, generator=torch.Generator().manual_seed(0)) * 200).to(dtype)
    assert largest_covariance_eigenvalue(T) == pytest.approx(reference(T.double()), rel=1e-10)


def test_small_blocks_merge_to_the_same_moments(monkeypatch):
    X = correlated(500, 7)
    monkeypatch.setattr("lrsearch.bounds.blocks.BLOCK_ELEMENTS", 21)
    assert largest_covariance_eigenvalue(X) == pytest.approx(reference(X), rel=1e-12)


def test_constant_features_stay_zero():
    X = correlated(300, 6)
    padded = np.column_stack([np.full(300, 0.1), X, np.zeros(300), np.full(300, 1e12)])
    assert largest_covariance_eigenvalue(padded) == pytest.approx(reference(X), rel=1e-12)
    assert largest_covariance_eigenvalue(np.full((10, 3), 0.1)) == 0.0


def test_a_huge_offset_costs_no_digits(matrix_free):
    X = correlated(400, 5).astype(np.float32).astype(np.float64)
    shifted = X + 2.0**20
    assert largest_covariance_eigenvalue(shifted) == pytest.approx(reference(X), rel=1e-8)


def test_wide_data_never_need_a_square_matrix():
    samples, features = 60, 20_000
    X = np.random.default_rng(0).standard_normal((samples, features)).astype(np.float32)
    X[:, ::3] += 2.0 * X[:, [0]]
    tracemalloc.start()
    spectrum = covariance_spectrum(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    Z = X.astype(np.float64)
    Z = (Z - Z.mean(axis=0)) / Z.std(axis=0)
    expected = np.linalg.eigvalsh(Z @ Z.T / (samples - 1))[-1]  # the other side: 60 x 60
    assert spectrum.value == pytest.approx(expected, rel=1e-9)
    assert spectrum.passes < 30
    assert peak < 150e6 < features**2 * 8 / 20


finite = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))


@st.composite
def matrices(draw):
    samples, features = draw(st.integers(3, 12)), draw(st.integers(1, 5))
    rows = st.lists(finite, min_size=features, max_size=features)
    return np.array(draw(st.lists(rows, min_size=samples, max_size=samples)))


@settings(max_examples=60, deadline=None)
@given(matrices(), st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
def test_scale_shift_and_order_do_not_matter_when_standardised(X, scale, random):
    value = largest_covariance_eigenvalue(X)
    order = random.sample(range(len(X)), len(X))
    shift = np.arange(X.shape[1])
    assert largest_covariance_eigenvalue(X[order]) == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert largest_covariance_eigenvalue(X * 2.0**9) == pytest.approx(value, rel=1e-12, abs=0)
    if (np.ptp(X, axis=0) > 1e-2).all():
        moved = largest_covariance_eigenvalue(X * scale + shift)
        assert moved == pytest.approx(value, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_it_lies_between_the_mean_and_the_sum_of_the_eigenvalues(X):
    varying = int((np.ptp(X, axis=0) > 0).sum())
    samples = len(X)
    value = largest_covariance_eigenvalue(X)
    correction = samples / (samples - 1)
    assert value <= varying * correction * (1 + 1e-9)
    assert value >= (correction if varying else 0.0) * (1 - 1e-9)


@settings(max_examples=40, deadline=None)
@given(matrices(), st.integers(1, 11))
def test_two_halves_merge_to_the_whole(X, cut):
    parts = [X[:cut], X[cut:]]
    whole = largest_covariance_eigenvalue(X, standardize=False)
    merged = largest_covariance_eigenvalue(parts, standardize=False)
    assert merged == pytest.approx(whole, rel=1e-9, abs=1e-12)


# --- The bounds ----------------------------------------------------------------------------------


def test_the_formulas_of_the_paper():
    X, m = correlated(50, 4), 3
    s, n, top = 50, 4, reference(X)
    cases = [
        ({"loss": "mse", "full_batch": True}, 2 * m * s / (top * (s - 1))),  # Eq. 16
        ({"loss": "mse", "full_batch": True, "eigenvalue": False}, 2 * m * s / (n * (s - 1))),
        ({"loss": "mse"}, 2 * m / top),  # Eq. 38
        ({"loss": "mse", "eigenvalue": False}, 2 * m / n),
        ({"loss": "cross_entropy"}, 2 / top),  # App. C
        ({"loss": "cross_entropy", "full_batch": True}, 2 / top),
        ({"loss": "binary_cross_entropy"}, 2 / top),
        ({"loss": "cross_entropy", "eigenvalue": False}, 2 / n),
        ({"loss": "mse", "loss_scale": 2.0}, m / top),
    ]
    for options, expected in cases:
        assert max_learning_rate(X, outputs=m, **options) == pytest.approx(expected), options


@pytest.mark.parametrize("full_batch", [True, False])
def test_a_known_spectrum_gives_the_same_bound_without_the_data(full_batch):
    X = correlated()
    spectrum = covariance_spectrum(X)
    options = {"loss": "mse", "outputs": 2, "full_batch": full_batch, "loss_scale": 2.0}
    bound = bound_from_eigenvalue(spectrum.value, spectrum.samples, **options)
    assert bound == max_learning_rate(X, **options)


def test_the_bias_column_bounds_badly_scaled_inputs():
    X = correlated(100, 4) * 0.01
    without = max_learning_rate(X, standardize=False)
    with_bias = max_learning_rate(X, standardize=False, bias=True)
    assert with_bias == pytest.approx(2 / reference(X, standardize=False, bias=True))
    assert with_bias < 2.0 < without


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_bound_without_eigenvalues_is_lower(standardize, bias):
    options = {"loss": "mse", "standardize": standardize, "bias": bias}
    X = correlated(60, 5)
    assert max_learning_rate(X, eigenvalue=False, **options) < max_learning_rate(X, **options)


def excess_after_descent(X, Y, loss, rate, steps=2500):
    """Excess of the loss over its minimum after full-batch descent, relative to the start's."""
    X, Y = torch.from_numpy(X), torch.from_numpy(Y)
    best = loss(X @ torch.linalg.lstsq(X, Y).solution, Y)
    weights = torch.zeros(X.shape[1], Y.shape[1], dtype=torch.float64, requires_grad=True)
    start = loss(X @ weights, Y)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(X @ weights, Y), weights)
        weights = (weights - rate * gradient).detach().requires_grad_()
        if not torch.isfinite(weights).all():
            return np.inf
    return float(((loss(X @ weights, Y) - best) / (start - best)).detach())


def papers_loss(outputs, targets):
    return ((outputs - targets) ** 2).sum() / (2 * targets.numel())


@pytest.mark.parametrize(
    ("loss", "loss_scale"), [(papers_loss, 1.0), (torch.nn.MSELoss(), 2.0)], ids=["paper", "torch"]
)
@pytest.mark.parametrize("layout", ["standardised", "as it is, with bias"])
def test_descent_converges_just_below_the_bound_and_diverges_just_above(loss, loss_scale, layout):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((40, 4)) + 0.5
    Y = X @ rng.standard_normal((4, 3)) + rng.standard_normal((40, 3))
    options = {"standardize": False, "bias": True}
    trained_on = np.column_stack([X, np.ones(40)])
    if layout == "standardised":
        options = {}
        trained_on = (X - X.mean(axis=0)) / X.std(axis=0)
    bound = max_learning_rate(
        X, loss="mse", outputs=3, full_batch=True, loss_scale=loss_scale, **options
    )
    assert excess_after_descent(trained_on, Y, loss, 0.99 * bound) < 1e-6
    assert excess_after_descent(trained_on, Y, loss, 1.01 * bound) > 1e6


def test_mean_absolute_sum_counts_the_bias():
    X = correlated(33, 5)
    expected = np.abs(X).sum(axis=1).mean()
    assert mean_absolute_sum(X) == pytest.approx(expected + 1)
    assert mean_absolute_sum([X[:10], X[10:]], bias=False) == pytest.approx(expected)


# --- Bad input -----------------------------------------------------------------------------------


class Samples(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Shrinking:
    """Gives one batch less at each walk."""

    def __init__(self):
        self.left = 3

    def __iter__(self):
        self.left -= 1
        yield from [np.eye(4)] * self.left


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (np.zeros((0, 3)), ValueError, "got none"),
        ([], ValueError, "got none"),
        (Samples([]), ValueError, "got none"),
        (np.ones((5, 0)), ValueError, "at least one feature"),
        (np.ones((1, 3)), ValueError, "at least two samples"),
        (np.ones(5), ValueError, "shape"),
        (torch.ones(()), ValueError, "shape"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), ValueError, "finite"),
        (torch.tensor([[1.0, float("inf")], [0.0, 1.0]]), ValueError, "finite"),
        (np.array([[1e200], [-1e200]]), ValueError, "scale them"),
        ([np.ones((2, 3)), np.ones((2, 4))], ValueError, "same number of features"),
        (Samples([np.ones(3), np.ones(4)]), ValueError, "same number of features"),
        ([np.ones(3), np.ones(3)], ValueError, "DataLoader"),
        ([()], ValueError, "empty"),
        ([[[1.0, 2.0]], [[3.0, 4.0]]], TypeError, "array first"),
        (np.array([["a"], ["b"]]), TypeError, "real numbers"),
        (np.ones((3, 2), dtype=complex), TypeError, "real numbers"),
        (torch.ones(3, 2, dtype=torch.complex64), TypeError, "real numbers"),
        ("digits", TypeError, "got str"),
        ({"x": 1}, TypeError, "got dict"),
        (3, TypeError, "got int"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_bad_inputs_raise_one_line_that_names_them(inputs, error, text):
    with pytest.raises(error, match=text) as caught:
        largest_covariance_eigenvalue(inputs)
    assert isinstance(caught.value, LrsearchError)
    assert "inputs" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_iterable_that_changes_between_walks_is_told(matrix_free):
    with pytest.raises(ValueError, match="same samples at every pass, got 8 and then 4"):
        largest_covariance_eigenvalue(Shrinking())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"loss": "hinge"}, ValueError, "loss must be one of"),
        ({"outputs": 0}, ValueError, "outputs"),
        ({"outputs": 1.5}, ValueError, "outputs"),
        ({"outputs": "3"}, TypeError, "outputs"),
        ({"loss_scale": 0.0}, ValueError, "loss_scale"),
        ({"tolerance": -1.0}, ValueError, "tolerance"),
    ],
)
def test_bad_options_raise(options, error, text):
    with pytest.raises(error, match=text):
        max_learning_rate(correlated(), **options)


@pytest.mark.parametrize("eigenvalue", [True, False])
def test_constant_inputs_have_no_bound_unless_there_is_a_bias(eigenvalue):
    X = np.full((10, 3), 7.0)
    with pytest.raises(ValueError, match="inputs must vary"):
        max_learning_rate(X, eigenvalue=eigenvalue)
    assert max_learning_rate(X, eigenvalue=eigenvalue, bias=True) == pytest.approx(2.0, rel=0.11)


def test_mean_absolute_sum_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        mean_absolute_sum(np.array([[np.nan]]))


def test_the_record_cannot_be_changed():
    spectrum = covariance_spectrum(correlated())
    assert isinstance(spectrum, LargestEigenvalue)
    with pytest.raises(AttributeError):
        spectrum.value = 0.0


@pytest.mark.parametrize("module", ["covariance", "krylov", "lipschitz"])
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(import_module(f"lrsearch.bounds.{module}")).failed == 0
