"""Lipschitz constants against closed forms and against gradients that torch measures."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from lrsearch.bounds import (
    linear_regression_lipschitz,
    lipschitz_constant,
    regression_weight_bound,
    tikhonov_norm,
)
from lrsearch.errors import LrsearchError


def test_the_formulas_of_the_table():
    common = {"batch_size": 32, "k_z": 6.0}
    assert lipschitz_constant("cross_entropy", classes=10, **common) == pytest.approx(
        9 * 6 / (10 * 32)
    )
    assert lipschitz_constant("binary_cross_entropy", **common) == pytest.approx(6 / 64)
    assert lipschitz_constant("mse", k_a=5.0, target_norm=2.0, **common) == pytest.approx(
        3 * 6 / 32
    )
    assert lipschitz_constant("mse", k_a=2.0, target_norm=5.0, **common) == pytest.approx(
        3 * 6 / 32
    )
    penalised = lipschitz_constant(
        "binary_cross_entropy", weight_decay=0.1, weight_norm=4.0, **common
    )
    assert penalised == pytest.approx(6 / 64 + 0.4)


def test_the_scale_of_the_loss_multiplies_the_data_and_not_the_penalties():
    arguments = {"batch_size": 8, "k_z": 4.0, "k_a": 3.0, "target_norm": 1.0}
    data = lipschitz_constant("mse", **arguments)
    decayed = lipschitz_constant(
        "mse", loss_scale=2.0, weight_decay=0.1, tikhonov=0.5, weight_norm=3.0, **arguments
    )
    assert decayed == pytest.approx(2 * data + 0.1 * 3 + 2 * 3 * 0.5)


def class_gradients(rows, labels, classes):
    """Norm of the mean cross-entropy's gradient for each class's weights, at a uniform output."""
    weights = torch.zeros(classes, rows.shape[1], dtype=torch.float64, requires_grad=True)
    functional.cross_entropy(rows @ weights.T, labels).backward()
    return weights.grad.norm(dim=1)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("m", [1, 8])
def test_cross_entropy_is_the_largest_gradient_at_a_uniform_output(classes, m):
    row = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = row.repeat(m, 1)
    measured = class_gradients(rows, torch.zeros(m, dtype=torch.int64), classes).max()
    k_z = float(rows.norm(dim=1).sum())
    found = lipschitz_constant("cross_entropy", batch_size=m, k_z=k_z, classes=classes)
    assert found == pytest.approx(float(measured), rel=1e-12)


def test_other_batches_stay_below_it():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(64, 7, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (64,), generator=generator)
    k_z = float(rows.norm(dim=1).sum())
    L = lipschitz_constant("cross_entropy", batch_size=64, k_z=k_z, classes=4)
    assert float(class_gradients(rows, labels, 4).max()) <= L


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_binary_cross_entropy_is_the_gradient_at_output_zero(target):
    row = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    weights = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    functional.binary_cross_entropy_with_logits(
        row @ weights.T, torch.full((1, 1), target, dtype=torch.float64)
    ).backward()
    found = lipschitz_constant("binary_cross_entropy", batch_size=1, k_z=5.0)
    assert found == pytest.approx(float(weights.grad.norm()))


def test_the_supremum_holds_where_the_papers_form_does_not():
    row = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    weights = torch.tensor([[-9.0, -12.0], [9.0, 12.0]], dtype=torch.float64, requires_grad=True)
    functional.cross_entropy(row @ weights.T, torch.tensor([0])).backward()
    measured = float(weights.grad[0].norm())
    arguments = {"batch_size": 1, "k_z": 5.0, "classes": 2}
    assert lipschitz_constant("cross_entropy", **arguments) < measured
    assert measured <= lipschitz_constant("cross_entropy", supremum=True, **arguments)


@given(
    st.sampled_from(["cross_entropy", "binary_cross_entropy", "mse"]),
    st.floats(1e-3, 1e3),
    st.integers(1, 1000),
    st.floats(0, 10),
    st.floats(0, 10),
)
def test_it_scales_with_the_activations_and_grows_with_the_penalty(loss, k_z, m, decay, norm):
    def constant(**changes):
        arguments = {"batch_size": m, "k_z": k_z, "classes": 5, "k_a": 2.0, "target_norm": 1.0}
        return lipschitz_constant(loss, **(arguments | changes))

    assert constant(k_z=2 * k_z) == pytest.approx(2 * constant())
    assert constant(batch_size=2 * m) == pytest.approx(constant() / 2)
    assert constant(weight_decay=decay, weight_norm=norm) == pytest.approx(
        constant() + decay * norm
    )
    assert constant(supremum=True) >= constant()


@pytest.mark.parametrize(
    ("loss", "changes", "error", "text"),
    [
        ("hinge", {}, ValueError, "loss must be one of"),
        ("cross_entropy", {}, ValueError, "classes must be given for loss='cross_entropy'"),
        ("cross_entropy", {"classes": 1}, ValueError, "classes must be a whole number"),
        ("cross_entropy", {"classes": "ten"}, TypeError, "classes must be a number"),
        ("mse", {"target_norm": 1.0}, ValueError, "k_a must be given"),
        ("mse", {"k_a": 1.0}, ValueError, "target_norm must be given"),
        ("mse", {"k_a": 1.0, "target_norm": -1.0}, ValueError, "target_norm must be a finite"),
        ("mse", {"k_a": 1.0, "target_norm": 1.0}, ValueError, "vanishes"),
        ("binary_cross_entropy", {"k_z": 0.0}, ValueError, "k_z must be a positive"),
        ("binary_cross_entropy", {"k_z": float("nan")}, ValueError, "k_z must be a positive"),
        ("binary_cross_entropy", {"batch_size": 0}, ValueError, "batch_size"),
        ("binary_cross_entropy", {"batch_size": 2.5}, ValueError, "batch_size"),
        ("binary_cross_entropy", {"batch_size": float("inf")}, ValueError, "batch_size"),
        ("binary_cross_entropy", {"weight_decay": -0.1}, ValueError, "weight_decay"),
        ("binary_cross_entropy", {"weight_norm": float("inf")}, ValueError, "weight_norm"),
        ("binary_cross_entropy", {"loss_scale": 0.0}, ValueError, "loss_scale"),
        ("binary_cross_entropy", {"loss_scale": "two"}, TypeError, "loss_scale"),
        ("binary_cross_entropy", {"tikhonov": -1.0}, ValueError, "tikhonov"),
    ],
)
def test_bad_arguments_raise_one_line_that_names_them(loss, changes, error, text):
    arguments = {"batch_size": 4, "k_z": 1.0} | changes
    with pytest.raises(error, match=text) as caught:
        lipschitz_constant(loss, **arguments)
    assert isinstance(caught.value, LrsearchError)
    assert "\n" not in str(caught.value)


# --- Tikhonov ------------------------------------------------------------------------------------


def test_the_tikhonov_norm_takes_a_number_a_diagonal_or_a_matrix():
    assert tikhonov_norm(-3.0) == 9.0
    assert tikhonov_norm([1.0, -4.0, 2.0]) == 16.0
    assert tikhonov_norm(torch.tensor([1.0, -4.0], dtype=torch.bfloat16)) == 16.0
    assert tikhonov_norm(np.diag([1.0, -4.0, 2.0])) == pytest.approx(16.0)
    assert tikhonov_norm(np.zeros((2, 3))) == 0.0
    gamma = np.random.default_rng(0).standard_normal((3, 5))
    expected = np.linalg.eigvalsh(gamma.T @ gamma).max()
    assert tikhonov_norm(gamma) == pytest.approx(expected)
    assert tikhonov_norm(torch.from_numpy(gamma).requires_grad_()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gamma", "error", "text"),
    [
        ([], ValueError, "gamma must not be empty"),
        (np.ones((0, 3)), ValueError, "gamma must not be empty"),
        (np.ones((2, 2, 2)), ValueError, "gamma must be a number, a vector or a matrix"),
        (float("nan"), ValueError, "gamma must be finite"),
        ("one", TypeError, "gamma must be real numbers"),
        (None, TypeError, "gamma must be real numbers"),
        (torch.ones(2, dtype=torch.complex64), TypeError, "gamma must be real numbers"),
    ],
)
def test_a_gamma_that_is_none_raises(gamma, error, text):
    with pytest.raises(error, match=text) as caught:
        tikhonov_norm(gamma)
    assert isinstance(caught.value, LrsearchError)


# --- Linear regression ---------------------------------------------------------------------------


def test_the_weight_bound_is_the_papers():
    X = np.array([[0.2, 0.5, 0.1], [0.8, 0.5, 0.9]])
    a = X.sum() / 2
    b = (0.8 + 0.5 + 0.9) / 3
    assert regression_weight_bound(X) == pytest.approx((a + b) / 2)
    assert regression_weight_bound(torch.from_numpy(X)) == pytest.approx((a + b) / 2)


def test_least_squares_takes_spectral_norms():
    rng = np.random.default_rng(0)
    X, y = rng.random((30, 4)), rng.random(30)
    expected = 7.0 / 30 * np.linalg.norm(X.T @ X, 2) - np.linalg.norm(y @ X) / 30
    assert expected > 0
    assert linear_regression_lipschitz(X, y, weight_norm=7.0) == pytest.approx(expected)
    assert linear_regression_lipschitz(X, y[:, None], weight_norm=7.0) == pytest.approx(expected)
    guess = linear_regression_lipschitz(X, y, weight_norm=regression_weight_bound(X))
    assert linear_regression_lipschitz(X, y) == guess


def test_with_the_papers_scaling_the_targets_decide_and_the_rate_is_positive():
    rng = np.random.default_rng(0)
    X, y = rng.random((200, 5)), 20 + rng.random(200)
    X /= X.sum(axis=0)
    constant = linear_regression_lipschitz(X, y)
    assert constant == pytest.approx(np.linalg.norm(y @ X) / 200, rel=1e-3)


def test_the_supremum_bounds_every_gradient_in_the_ball():
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((50, 6)), rng.standard_normal(50)
    L = linear_regression_lipschitz(X, y, weight_norm=2.0, supremum=True)
    for _ in range(200):
        w = rng.standard_normal(6)
        w *= 2.0 / np.linalg.norm(w)
        assert np.linalg.norm(X.T @ (X @ w - y)) / 50 <= L


@pytest.mark.parametrize(
    ("X", "y", "error", "text"),
    [
        (np.ones(3), np.ones(3), ValueError, "X must have shape"),
        (np.ones((0, 2)), np.ones(0), ValueError, "X must not be empty"),
        (np.array([[np.nan]]), np.ones(1), ValueError, "X must be finite"),
        (np.ones((3, 2)), np.ones(2), ValueError, "y must have one row per row of X, got 2 and 3"),
        (np.ones((3, 2)), np.array(["a", "b", "c"]), TypeError, "y must be real numbers"),
        (-np.ones((3, 2)), np.ones(3), ValueError, "positive weight bound"),
        (np.zeros((3, 2)), np.ones(3), ValueError, "positive weight bound"),
    ],
)
def test_bad_data_raise(X, y, error, text):
    with pytest.raises(error, match=text):
        linear_regression_lipschitz(X, y)
