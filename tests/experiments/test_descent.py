"""Gradient descent of linear models, against plain loops, autograd and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from experiments.lipschitz.descent import (
    Logistic,
    Path,
    Softmax,
    epochs_to,
    least_squares,
    logistic_epochs_to,
    logistic_near_zero,
    trace,
)
from lrsearch.errors import InvalidArgumentError


def draw(seed, rows=40, features=5, runs=3):
    rng = np.random.default_rng(seed)
    inputs = rng.gamma(1.0, size=(rows, features))
    return inputs, rng.standard_normal(rows) + 2.0, rng.standard_normal((features, runs))


def descend(inputs, targets, weights, rate, steps):
    """The plain loop over the rows: losses seen by each step, and the last weights."""
    losses = []
    for _ in range(steps + 1):
        error = inputs @ weights - targets[:, None]
        losses.append(0.5 * (error**2).mean(axis=0))
        last, weights = weights, weights - rate * inputs.T @ error / len(inputs)
    return np.array(losses), last


# --- closed form -----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.001, 0.999), steps=st.integers(0, 300))
def test_a_path_is_what_the_loop_walks(seed, share, steps):
    inputs, targets, weights = draw(seed)
    loss = least_squares(inputs, targets)
    rate = share / float(np.linalg.eigvalsh(loss.curvature)[-1])
    losses, last = descend(inputs, targets, weights, rate, steps)
    path = Path(loss, weights, rate)
    np.testing.assert_allclose(path.losses(0), losses[0], rtol=1e-12)
    np.testing.assert_allclose(path.losses(steps), losses[-1], rtol=1e-9)
    np.testing.assert_allclose(weights + path.moved(steps), last, rtol=1e-8, atol=1e-9)


def test_a_path_counts_the_epochs_that_the_loop_counts():
    inputs, targets, weights = draw(1, rows=200, features=9, runs=20)
    scaled = inputs / inputs.sum(axis=0)  # as [L] scales: tiny curvature, large rates
    loss = least_squares(scaled, targets)
    for rate in (3.0, 300.0):
        losses, _ = descend(scaled, targets, weights, rate, 4000)
        threshold = float(np.median(losses[1000]))
        counted = np.argmax(losses < threshold, axis=0) + 1
        np.testing.assert_array_equal(
            Path(loss, weights, rate).epochs_to(threshold, most=10**9), counted
        )


def test_directions_without_curvature_neither_move_nor_fail():
    inputs, targets, weights = draw(2)
    twice = np.column_stack([inputs, inputs[:, 0]])  # a bias that is there twice, as for news
    weights = np.vstack([weights, weights[:1]])
    losses, last = descend(twice, targets, weights, 0.01, 500)
    path = Path(least_squares(twice, targets), weights, 0.01)
    np.testing.assert_allclose(path.losses(500), losses[-1], rtol=1e-10)
    np.testing.assert_allclose(weights + path.moved(500), last, rtol=1e-9)
    assert np.isfinite(path.losses(10**12)).all()


def test_the_first_epoch_sees_the_initial_weights():
    inputs, targets, weights = draw(3)
    path = Path(least_squares(inputs, targets), weights, 0.001)
    first = path.losses(0)
    above = np.nextafter(first.max(), np.inf)
    assert path.epochs_to(above, most=10).tolist() == [1.0] * 3
    run = int(first.argmax())
    assert path.epochs_to(first.max(), most=10)[run] == 2.0  # strictly below


def test_what_is_not_reached_is_nan():
    inputs, targets, weights = draw(4)
    path = Path(least_squares(inputs, targets), weights, 0.01)
    assert np.isnan(path.epochs_to(0.0, most=10**9)).all()
    threshold = float(path.losses(99).max())
    slow = int(path.losses(99).argmax())
    assert np.isnan(path.epochs_to(threshold, most=100)[slow])
    assert path.epochs_to(threshold, most=101)[slow] == 101.0


@pytest.mark.parametrize("rate", [0.0, -1.0, 1e9, float("nan")])
def test_rates_that_overshoot_have_no_path(rate):
    inputs, targets, weights = draw(5)
    with pytest.raises(InvalidArgumentError, match="rate"):
        Path(least_squares(inputs, targets), weights, rate)


# --- classes ---------------------------------------------------------------------------------


def binary(seed, rows=50, features=4, runs=3):
    inputs, values, weights = draw(seed, rows, features, runs)
    return inputs, (values > 2.0).astype(float), weights


def test_the_logistic_loss_and_gradient_are_those_of_others():
    inputs, targets, weights = binary(0)
    losses, gradient = Logistic(inputs, targets).look(weights)
    for run in range(3):
        w = torch.tensor(weights[:, run], requires_grad=True)
        outputs = torch.tensor(inputs) @ w
        loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs, torch.tensor(targets))
        loss.backward()
        assert losses[run] == pytest.approx(loss.item(), rel=1e-12)
        np.testing.assert_allclose(gradient[:, run], w.grad.numpy(), rtol=1e-10, atol=1e-14)
        chances = torch.sigmoid(outputs).detach().numpy()
        assert losses[run] == pytest.approx(log_loss(targets, chances), rel=1e-9)


def test_huge_outputs_neither_overflow_nor_warn():
    inputs, targets, weights = binary(1)
    losses, gradient = Logistic(inputs, targets).look(1e6 * weights)
    assert np.isfinite(losses).all()
    assert np.isfinite(gradient).all()
    model = Softmax(inputs, targets.astype(int), 2)
    losses, gradient = model.look(1e6 * weights[:, :, None] * np.array([1.0, -1.0]))
    assert np.isfinite(losses).all()
    assert np.isfinite(gradient).all()


def test_the_softmax_loss_and_gradient_are_those_of_autograd():
    rng = np.random.default_rng(2)
    inputs, targets = rng.gamma(1.0, size=(60, 4)), rng.integers(0, 3, 60)
    weights = rng.standard_normal((4, 5, 3))
    model = Softmax(inputs, targets, 3)
    losses, gradient = model.look(weights)
    accuracy = model.accuracy(weights)
    for run in range(5):
        w = torch.tensor(weights[:, run], requires_grad=True)
        outputs = torch.tensor(inputs) @ w
        loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(targets))
        loss.backward()
        assert losses[run] == pytest.approx(loss.item(), rel=1e-12)
        np.testing.assert_allclose(gradient[:, run], w.grad.numpy(), rtol=1e-10, atol=1e-14)
        right = (outputs.argmax(dim=1).numpy() == targets).mean()
        assert accuracy[run] == pytest.approx(100.0 * right, abs=1e-4)


def test_near_zero_the_second_order_is_all_there_is():
    inputs, targets, weights = binary(3)
    tiny = weights * 1e-5
    losses, gradient = Logistic(inputs, targets).look(tiny)
    quadratic = logistic_near_zero(inputs, targets)
    np.testing.assert_allclose(quadratic.loss(tiny), losses, rtol=0.0, atol=2e-16)
    own = quadratic.curvature @ tiny - quadratic.pull[:, None]
    np.testing.assert_allclose(own, gradient, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_shortcuts_are_taken_only_where_they_give_what_the_loop_gives(size, monkeypatch):
    inputs, targets, weights = binary(4, runs=6)
    model = Logistic(inputs * size, targets)
    losses, _ = trace(model, weights, 0.05, epochs=2000, every=1)
    threshold = float(np.median(losses[:, 1500]))
    counted = epochs_to(model, weights, 0.05, threshold, most=3000)
    assert np.isfinite(counted).sum() >= 3
    looped = []
    monkeypatch.setattr(
        "experiments.lipschitz.descent.epochs_to",
        lambda *given, most: looped.append(1) or epochs_to(*given, most=most),
    )
    found = logistic_epochs_to(model, weights, 0.05, threshold, most=3000, far=3000)
    np.testing.assert_array_equal(found, counted)
    assert bool(looped) == (size == 1.0)


def test_a_trace_keeps_losses_and_weights():
    inputs, targets, weights = binary(5)
    model = Logistic(inputs, targets)
    losses, at = trace(model, weights, 0.1, epochs=20, every=5, stops=(0, 10, 20))
    assert losses.shape == (3, 5)
    np.testing.assert_array_equal(at[0], weights)
    for column, step in enumerate((0, 10, 20)):
        np.testing.assert_array_equal(losses[:, 2 * column], model.look(at[step])[0])
