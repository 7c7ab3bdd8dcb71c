"""Where L is exceeded, or 1 / L is no good rate: by how much, in examples.

The inputs for which L is a bound stand in test_lipschitz_gradients.py. If one of these fails, a
formula has become better than its documentation says.
"""

from math import log, sqrt

import numpy as np
import pytest
import torch
from numpy.linalg import norm
from torch import nn
from torch.nn import functional

from lrsearch.bounds import (
    linear_regression_lipschitz,
    lipschitz_constant,
    regression_weight_bound,
)

ROWS = 16


def alike(norm_of_row=5.0):
    """Parallel rows, shape (16, 2)."""
    return np.tile([0.6 * norm_of_row, 0.8 * norm_of_row], (ROWS, 1))


def gradient(loss, rows, labels, weights, bias=False):
    """Of a linear model, as torch measures it: shape (outputs, n)."""
    model = nn.Linear(rows.shape[1], len(weights), bias=bias).double()
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(weights))
        if bias:
            model.bias.zero_()
    outputs, targets = model(torch.as_tensor(rows)), torch.as_tensor(labels)
    if loss == "cross_entropy":
        functional.cross_entropy(outputs, targets).backward()
    elif loss == "binary_cross_entropy":
        functional.binary_cross_entropy_with_logits(outputs[:, 0], targets.double()).backward()
    else:
        (((outputs[:, 0] - targets) ** 2).sum() / (2 * len(rows))).backward()
    part = model.bias if bias else model.weight
    return part.grad.numpy()


def confidently_wrong(loss, rows, classes):
    """Weights that give the first label a probability of about 0, and the second one of 1."""
    direction = 50 * rows[:1] / norm(rows[0]) ** 2
    if loss == "binary_cross_entropy":
        return direction
    return np.vstack([-direction, direction, *(-direction,) * (classes - 2)])


@pytest.mark.parametrize(
    ("loss", "classes", "factor"),
    [
        ("binary_cross_entropy", 2, 2),
        ("cross_entropy", 2, 2),
        ("cross_entropy", 3, 3 / 2),
        ("cross_entropy", 10, 10 / 9),
    ],
)
def test_a_confident_wrong_output_exceeds_the_papers_form(loss, classes, factor):
    rows, labels = alike(), np.zeros(ROWS, dtype=int)
    arguments = {"batch_size": ROWS, "classes": classes}
    L = lipschitz_constant(loss, k_z=norm(rows, axis=1).sum(), **arguments)
    measured = gradient(loss, rows, labels, confidently_wrong(loss, rows, classes))
    assert norm(measured, axis=1).max() == pytest.approx(factor * L)
    # With the Frobenius norm, as in the papers' code, sqrt(m) comes on top.
    frobenius = lipschitz_constant(loss, k_z=norm(rows), **arguments)
    assert norm(measured, axis=1).max() == pytest.approx(factor * sqrt(ROWS) * frobenius)


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "cross_entropy"])
def test_parallel_rows_exceed_the_frobenius_norm_at_a_uniform_output(loss):
    rows, labels = alike(), np.zeros(ROWS, dtype=int)
    L = lipschitz_constant(loss, batch_size=ROWS, k_z=norm(rows), classes=2)
    zero = np.zeros((1 if loss == "binary_cross_entropy" else 2, 2))
    measured = gradient(loss, rows, labels, zero)
    assert norm(measured, axis=1).max() == pytest.approx(sqrt(ROWS) * L)
    # Nor does the largest norm of a unit over the batch (the text's K_z) cover one weight.
    unit = norm(rows, axis=0).max()
    L = lipschitz_constant(loss, batch_size=ROWS, k_z=unit, classes=2)
    assert np.abs(measured).max() == pytest.approx(sqrt(ROWS) * L)


@pytest.mark.parametrize("classes", [2, 10])
def test_the_classes_together_exceed_what_bounds_each(classes):
    rows, labels = alike(), np.zeros(ROWS, dtype=int)
    k_z = norm(rows, axis=1).sum()
    L = lipschitz_constant("cross_entropy", batch_size=ROWS, k_z=k_z, classes=classes)
    measured = gradient("cross_entropy", rows, labels, np.zeros((classes, 2)))
    assert norm(measured) == pytest.approx(sqrt(classes / (classes - 1)) * L)


def test_outputs_as_long_as_the_targets_leave_nothing_of_equation_9():
    rows, targets = alike(), np.full(ROWS, 2.0)
    weights = -2.0 * rows[:1] / norm(rows[0]) ** 2  # outputs of -2
    k_a = 1.01 * norm(targets)
    common = {"batch_size": ROWS, "k_z": norm(rows), "k_a": k_a, "target_norm": norm(targets)}
    measured = norm(gradient("mse", rows, targets, weights))
    assert measured == pytest.approx(200 * lipschitz_constant("mse", **common))
    assert measured <= lipschitz_constant("mse", supremum=True, **common)
    # The difference is the least residual of outputs that long; their direction decides.
    least = gradient("mse", rows, targets, -1.01 * weights)
    assert norm(least) == pytest.approx(lipschitz_constant("mse", **common))


def test_the_weight_bound_before_training_is_a_guess():
    """It does not see the targets: the solution may lie anywhere."""
    rng = np.random.default_rng(0)
    X = rng.random((50, 3))
    y = X @ np.array([30.0, -40.0, 0.0])
    solution = np.linalg.lstsq(X, y, rcond=None)[0]
    assert norm(solution) > 38 * regression_weight_bound(X)


# --- What no bound on the last layer's weights covers ---------------------------------------------


def network(activation, inputs_times, weights_times):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), activation, nn.Linear(16, 10)).double()
    with torch.no_grad():
        model[2].weight.mul_(weights_times)
    inputs = inputs_times * torch.randn(32, 16).double()
    functional.cross_entropy(model(inputs), torch.arange(32) % 10).backward()
    arguments = {
        "batch_size": 32,
        "k_z": float(model[:2](inputs).detach().norm()),
        "classes": 10,
    }
    return (
        model[0].weight.grad.numpy(),
        model[2].weight.grad.numpy(),
        lipschitz_constant("cross_entropy", **arguments),
        lipschitz_constant("cross_entropy", supremum=True, **arguments),
    )


@pytest.mark.parametrize(
    ("activation", "inputs_times", "weights_times", "by_entry", "by_norm"),
    [
        (nn.Sigmoid(), 100, 1, 2.5, 3.0),  # inputs like raw pixels, torch's initial weights
        (nn.Sigmoid(), 1, 30, 1.8, 14),  # large weights in the last layer
        (nn.ReLU(), 1, 30, 12, 54),
        (nn.Tanh(), 10, 30, 42, 91),
    ],
)
def test_an_earlier_layer_has_the_larger_gradient(
    activation, inputs_times, weights_times, by_entry, by_norm
):
    """[L] Eq. 1 has the last layer's largest entry above those of all others."""
    first, last, L, supremum = network(activation, inputs_times, weights_times)
    assert np.abs(first).max() > by_entry * np.abs(last).max()
    assert norm(first) > by_norm * L
    assert norm(last) <= supremum
    if weights_times > 1:
        assert norm(first) > supremum


def test_the_first_layer_is_the_smaller_one_with_the_papers_premises():
    """Sigmoid, standardised inputs, initial weights: the claim's own case."""
    first, last, L, _ = network(nn.Sigmoid(), 1, 1)
    assert np.abs(first).max() < np.abs(last).max()
    assert norm(first) < L


def test_the_bias_exceeds_the_bound_where_activations_are_small():
    rows = 0.01 * np.random.default_rng(0).standard_normal((32, 16))
    labels = np.zeros(32, dtype=int)
    measured = gradient("cross_entropy", rows, labels, np.zeros((10, 16)), bias=True)
    common = {"batch_size": 32, "classes": 10}
    assert norm(measured) > 100 * lipschitz_constant("cross_entropy", k_z=norm(rows), **common)
    supremum = {"supremum": True, **common}
    assert norm(measured) > 10 * lipschitz_constant("cross_entropy", k_z=norm(rows), **supremum)
    with_ones = sqrt(norm(rows) ** 2 + 32)
    assert norm(measured) <= lipschitz_constant("cross_entropy", k_z=with_ones, **supremum)


# --- 1 / L is not a bound of stability ------------------------------------------------------------


def least_squares(units, rate_of, steps):
    """Descent on a convex problem from a start within the ball; distance left, as a share.

    Args:
        units: by what the targets, the solution and the ball are multiplied.
        rate_of: (L, largest curvature) -> rate. L is the true bound on the gradient in the ball.
        steps: of full gradient descent.
    """
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    solution = 0.1 * units * np.ones(3)
    y = X @ solution
    L = linear_regression_lipschitz(X, y, weight_norm=norm(solution), supremum=True)
    rate = rate_of(L, norm(X, 2) ** 2 / 40)
    w = np.zeros(3)
    for _ in range(steps):
        w -= rate * X.T @ (X @ w - y) / 40
    return norm(w - solution) / norm(solution)


def test_descent_diverges_at_one_by_a_true_bound():
    """L has units of loss per weight, the limit 2 / lambda_max of loss per squared weight."""
    assert least_squares(1.0, lambda L, curvature: 1 / L, 50) > 1e10
    assert least_squares(1.0, lambda L, curvature: 1 / curvature, 50) < 1e-4


def test_descent_crawls_at_one_by_l_where_the_targets_are_large():
    """The same problem in units of 1/1000: L is 1000 times larger, the curvature is not."""
    assert least_squares(1000.0, lambda L, curvature: 1 / L, 50) > 0.7
    assert least_squares(1000.0, lambda L, curvature: 1 / curvature, 50) < 1e-4


def logistic_losses(row, rate_of, steps=50):
    """Two equal rows with opposite labels: the optimum is a probability of 1/2, loss log 2."""
    rows, labels = np.array([[row], [row]]), np.array([0, 1])
    L = lipschitz_constant("binary_cross_entropy", batch_size=2, k_z=norm(rows))
    curvature = row**2 / 4
    weights = np.array([[0.001]])
    for _ in range(steps):
        weights = weights - rate_of(L, curvature) * gradient(
            "binary_cross_entropy", rows, labels, weights
        )
    z = torch.from_numpy(rows @ weights.T)[:, 0]
    return float(functional.binary_cross_entropy_with_logits(z, torch.from_numpy(labels).double()))


def test_logistic_regression_oscillates_at_one_by_l():
    """Rows longer than 2 sqrt(2): 1 / L passes 2 / curvature. It ends in a cycle of two points."""
    at_one_by_l = logistic_losses(4.0, lambda L, curvature: 1 / L)
    assert at_one_by_l > 1.8 * log(2)
    assert logistic_losses(4.0, lambda L, curvature: 1 / L, 51) == pytest.approx(at_one_by_l)
    assert logistic_losses(4.0, lambda L, curvature: 1 / curvature) == pytest.approx(log(2))
    assert logistic_losses(2.0, lambda L, curvature: 1 / L) == pytest.approx(log(2))
