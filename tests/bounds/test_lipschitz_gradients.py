"""Where L bounds the last layer's gradient, as torch measures it, and where it does not.

The properties state for which inputs L is a bound, and that it is attained. The counterexamples
assert by how much the papers' form is exceeded elsewhere.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.linalg import norm
from torch import nn
from torch.nn import functional

from lrsearch.bounds import (
    linear_regression_lipschitz,
    lipschitz_constant,
    tikhonov_norm,
)

ROUNDING = 1 + 1e-9
CROSS_ENTROPIES = ["binary_cross_entropy", "cross_entropy"]
LOSSES = [*CROSS_ENTROPIES, "mse"]


@dataclass
class Batch:
    """Rows (m, n) in front of a last layer with weights (outputs, n), and their targets.

    Targets are (m, outputs): real numbers, or probabilities ((m, 1) for the binary loss).
    """

    loss: str
    rows: np.ndarray
    weights: np.ndarray
    targets: np.ndarray
    relu: bool = False

    @property
    def outputs(self):
        z = self.rows @ self.weights.T
        return np.maximum(z, 0) if self.relu else z

    @property
    def probabilities(self):
        """Of each class, shape (m, k); k = 2 for the binary loss."""
        z = torch.from_numpy(self.outputs)
        if self.loss == "binary_cross_entropy":
            z = torch.cat([torch.zeros_like(z), z], dim=1)
        return z.softmax(dim=1).numpy()

    def gradient(self, bias=False):
        """Of the papers' loss, shape (outputs, n), with a last column for the bias."""
        rows = np.hstack([self.rows, np.ones((len(self.rows), 1))]) if bias else self.rows
        zero = np.zeros((len(self.weights), 1))
        start = np.hstack([self.weights, zero]) if bias else self.weights
        weights = torch.tensor(start, requires_grad=True)
        z, targets = torch.from_numpy(rows) @ weights.T, torch.from_numpy(self.targets)
        if self.loss == "mse":
            a = z.relu() if self.relu else z
            value = ((a - targets) ** 2).sum() / (2 * len(rows))
        elif self.loss == "cross_entropy":
            value = functional.cross_entropy(z, targets)
        else:
            value = functional.binary_cross_entropy_with_logits(z, targets)
        value.backward()
        return weights.grad.numpy()

    def constant(self, **changes):
        arguments = {
            "batch_size": len(self.rows),
            "k_z": norm(self.rows),
            "classes": max(2, len(self.weights)),
            "k_a": norm(self.outputs),
            "target_norm": norm(self.targets),
        }
        return lipschitz_constant(self.loss, **(arguments | changes))


def matrices(rows, columns):
    """Whole numbers, so that squares neither overflow nor vanish."""
    return arrays(float, (rows, columns), elements=st.integers(-20, 20))


@st.composite
def batches(draw, losses=LOSSES, most_rows=6):
    loss = draw(st.sampled_from(losses))
    m, n = draw(st.integers(1, most_rows)), draw(st.integers(1, 4))
    outputs = 1 if loss == "binary_cross_entropy" else draw(st.integers(2, 4))
    rows = draw(matrices(m, n)) * draw(st.sampled_from([0.01, 1.0, 30.0]))
    assume(rows.any())
    weights = draw(matrices(outputs, n)) * draw(st.sampled_from([0.0, 0.01, 1.0]))
    targets = draw(matrices(m, outputs))
    if loss == "binary_cross_entropy":
        targets = np.abs(targets) / 20
    if loss == "cross_entropy":
        targets = np.abs(targets) + np.eye(outputs)[draw(st.integers(0, outputs - 1))]
        targets /= targets.sum(axis=1, keepdims=True)
    batch = Batch(loss, rows, weights, targets, relu=loss == "mse" and draw(st.booleans()))
    assume(targets.any() or batch.outputs.any())  # else L = 0, which is an error
    return batch


def right(batch, choices):
    """The batch with labels to which the outputs give a probability of at least 1/k."""
    p = batch.probabilities
    k = p.shape[1]
    likely = [np.flatnonzero(row >= 1 / k - 1e-12) for row in p]
    labels = [
        classes[choice % len(classes)] for classes, choice in zip(likely, choices, strict=False)
    ]
    targets = np.eye(k)[labels]
    batch.targets = targets[:, 1:] if batch.loss == "binary_cross_entropy" else targets
    return batch


def orthogonal_rows(rows):
    """Pairwise orthogonal rows with the norms of these; (m, m)."""
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((len(rows), len(rows))))
    return norm(rows, axis=1)[:, None] * q


def wrong(loss, m=16, classes=2, confidence=50.0):
    """Parallel rows of norm 5 whose outputs are all wrong, and alike."""
    rows = np.tile([3.0, 4.0], (m, 1))
    direction = rows[:1] / 25
    if loss == "binary_cross_entropy":
        return Batch(loss, rows, confidence * direction, np.zeros((m, 1)))
    if loss == "mse":
        return Batch(loss, rows, confidence * direction, np.full((m, 1), -confidence))
    weights = np.vstack([-confidence * direction, *(confidence * direction,) * (classes - 1)])
    return Batch(loss, rows, weights, np.eye(classes)[np.zeros(m, dtype=int)])


def uniform(loss, m=16, classes=2):
    """Parallel rows of norm 5, one label, and an output that knows nothing."""
    return wrong(loss, m, classes, confidence=0.0)


# --- The supremum: any weights, inputs and targets ------------------------------------------------


@given(batches())
def test_the_supremum_bounds_the_whole_layers_gradient_at_any_output(batch):
    measured = norm(batch.gradient())
    assert measured <= batch.constant(supremum=True) * ROUNDING
    spectral = batch.constant(supremum=True, k_z=norm(batch.rows, 2))
    assert measured <= spectral * ROUNDING


@pytest.mark.parametrize("loss", LOSSES)
def test_the_supremum_is_attained_by_parallel_rows_that_are_confidently_wrong(loss):
    batch = wrong(loss)
    assert norm(batch.gradient()) == pytest.approx(batch.constant(supremum=True), rel=1e-9)


@given(batches())
def test_the_supremum_bounds_weights_and_bias_with_a_one_in_every_row(batch):
    k_z = sqrt(norm(batch.rows) ** 2 + len(batch.rows))
    assert norm(batch.gradient(bias=True)) <= batch.constant(supremum=True, k_z=k_z) * ROUNDING


@given(batches(), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_the_largest_row_bounds_batches_of_any_size(batch, picks):
    """A mean of gradients is no longer than the longest of them."""
    longest = {
        "batch_size": 1,
        "k_z": norm(batch.rows, axis=1).max(),
        "k_a": norm(batch.outputs, axis=1).max(),
        "target_norm": norm(batch.targets, axis=1).max(),
    }
    L = batch.constant(supremum=True, **longest)
    chosen = [pick % len(batch.rows) for pick in picks]
    batch.rows, batch.targets = batch.rows[chosen], batch.targets[chosen]
    assert norm(batch.gradient()) <= L * ROUNDING


@given(batches(losses=["mse"]), st.floats(0.1, 10))
def test_the_supremum_of_torchs_loss_has_the_scale(batch, scale):
    measured = scale * norm(batch.gradient())
    assert measured <= batch.constant(supremum=True, loss_scale=scale) * ROUNDING


def test_torchs_squared_error_has_a_scale_of_two_by_the_outputs():
    generator = np.random.default_rng(0)
    for outputs in (1, 3):
        rows, weights = generator.standard_normal((5, 4)), generator.standard_normal((outputs, 4))
        batch = Batch("mse", rows, weights, generator.standard_normal((5, outputs)))
        theirs = torch.tensor(weights, requires_grad=True)
        nn.MSELoss()(torch.from_numpy(rows) @ theirs.T, torch.from_numpy(batch.targets)).backward()
        assert theirs.grad.numpy() == pytest.approx(2 / outputs * batch.gradient())


# --- The papers' form: where it is a bound --------------------------------------------------------


@given(batches(CROSS_ENTROPIES), st.lists(st.integers(0, 99), min_size=6, max_size=6))
def test_the_papers_form_bounds_one_class_if_every_row_leans_to_its_own(batch, choices):
    """Each row gives its label at least 1/k; K_z the sum of the rows' norms. So a batch that is
    classified correctly, and any labels at a uniform output (weights zero)."""
    gradient = right(batch, choices).gradient()
    L = batch.constant(k_z=norm(batch.rows, axis=1).sum())
    assert norm(gradient, axis=1).max() <= L * ROUNDING
    # One weight: the largest of the units' sums does.
    assert np.abs(gradient).max() <= batch.constant(k_z=np.abs(batch.rows).sum(axis=0).max()) * (
        ROUNDING
    )


@given(batches(CROSS_ENTROPIES, most_rows=4), st.lists(st.integers(0, 99), min_size=4, max_size=4))
def test_the_frobenius_norm_serves_if_the_rows_are_orthogonal(batch, choices):
    m = len(batch.rows)
    batch.rows = orthogonal_rows(batch.rows)
    batch.weights = np.resize(batch.weights, (len(batch.weights), m))
    assert norm(right(batch, choices).gradient(), axis=1).max() <= batch.constant() * ROUNDING


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_the_papers_form_is_attained_at_a_uniform_output(loss, classes):
    batch = uniform(loss, classes=classes)
    L = batch.constant(k_z=norm(batch.rows, axis=1).sum())
    assert norm(batch.gradient(), axis=1).max() == pytest.approx(L)
    batch.rows = orthogonal_rows(batch.rows)
    batch.weights = np.zeros((len(batch.weights), len(batch.rows)))
    assert norm(batch.gradient(), axis=1).max() == pytest.approx(batch.constant())


@given(batches(losses=["mse"]))
def test_the_papers_difference_bounds_outputs_shorter_by_twice_the_targets(batch):
    k_a = norm(batch.outputs) + 2 * norm(batch.targets)
    assert norm(batch.gradient()) <= batch.constant(k_a=k_a) * ROUNDING


def test_that_is_attained_by_parallel_rows_and_outputs_opposed_to_the_targets():
    batch = wrong("mse")
    k_a = norm(batch.outputs) + 2 * norm(batch.targets)
    assert norm(batch.gradient()) == pytest.approx(batch.constant(k_a=k_a))


# --- The penalties: any weights no longer than K --------------------------------------------------


@given(matrices(3, 4), arrays(float, 4, elements=st.integers(-20, 20)), st.floats(1e-3, 1e3))
def test_the_tikhonov_penalty_grows_as_said(gamma, w, longest):
    assume(w.any())
    weights = torch.tensor(w / norm(w) * longest, requires_grad=True)
    ((torch.from_numpy(gamma) @ weights) ** 2).sum().backward()
    added = 2 * longest * tikhonov_norm(gamma)
    assert norm(weights.grad.numpy()) <= added * ROUNDING
    top = np.linalg.svd(gamma)[2][0] * longest
    assert norm(2 * gamma.T @ (gamma @ top)) == pytest.approx(added, rel=1e-9, abs=1e-9)


@given(batches(), st.floats(0, 10), st.floats(-3, 3))
def test_loss_and_penalties_together_are_bounded(batch, decay, gamma):
    W = batch.weights
    gradient = batch.gradient() + decay * W + 2 * gamma**2 * W
    L = batch.constant(
        supremum=True, weight_decay=decay, weight_norm=norm(W), tikhonov=tikhonov_norm(gamma)
    )
    assert norm(gradient) <= L * ROUNDING


@given(st.floats(1e-6, 1e3), st.floats(1e-3, 1e3))
def test_an_l2_penalty_is_tikhonovs_with_the_root_of_half_of_lambda(decay, longest):
    """Not with lambda/2 as [L] 5.3 has it: that is lambda^2 / 2 times K."""
    common = {"batch_size": 1, "k_z": 1.0, "weight_norm": longest}
    decayed = lipschitz_constant("binary_cross_entropy", weight_decay=decay, **common)
    gamma = sqrt(decay / 2) * np.eye(3)
    tikhonov = lipschitz_constant("binary_cross_entropy", tikhonov=tikhonov_norm(gamma), **common)
    assert tikhonov == pytest.approx(decayed)
    assert 2 * tikhonov_norm(decay / 2) == pytest.approx(decay**2 / 2)


def test_the_papers_square_of_gamma_misses_a_penalty():
    gamma = np.array([[0.0, 1.0], [0.0, 0.0]])
    weights = torch.tensor([0.0, 3.0], dtype=torch.float64, requires_grad=True)
    ((torch.from_numpy(gamma) @ weights) ** 2).sum().backward()
    assert norm(gamma @ gamma, 2) == 0
    assert norm(weights.grad.numpy()) == 2 * 3.0 * tikhonov_norm(gamma) == 6.0


# --- Linear regression: any weights no longer than K ----------------------------------------------


@given(batches(losses=["mse"]), st.floats(1, 10))
def test_the_regressions_supremum_bounds_every_gradient_in_the_ball(batch, slack):
    assume(batch.weights.any())
    batch.relu = False
    L = linear_regression_lipschitz(
        batch.rows, batch.targets, weight_norm=slack * norm(batch.weights), supremum=True
    )
    assert norm(batch.gradient()) <= L * ROUNDING


@given(matrices(5, 3), arrays(float, 5, elements=st.integers(-20, 20)), st.floats(0.01, 100))
def test_the_regressions_difference_is_exceeded_in_every_ball(X, y, longest):
    """For all data with X^T y != 0: at one end or the other of the leading direction."""
    pull = X.T @ y
    curvature = norm(X, 2) ** 2
    assume(norm(pull) > 0)
    assume(abs(longest * curvature - norm(pull)) > 1e-6 * norm(pull))
    L = linear_regression_lipschitz(X, y, weight_norm=longest)
    leading = np.linalg.svd(X)[2][0]
    ends = [norm(X.T @ (X @ w) - pull) / 5 for w in (longest * leading, -longest * leading)]
    assert max(ends) > L
    assert max(ends) >= sqrt((longest * curvature) ** 2 + norm(pull) ** 2) / 5 / ROUNDING


def test_the_regressions_supremum_is_attained_and_its_difference_is_far_off():
    X = np.diag([3.0, 1.0])
    y = np.array([2.0, 0.0])  # X^T y is the leading eigenvector's
    batch = Batch("mse", X, np.array([[-0.7, 0.0]]), y[:, None])
    L = linear_regression_lipschitz(X, y, weight_norm=0.7, supremum=True)
    assert norm(batch.gradient()) == pytest.approx(L)
    assert norm(batch.gradient()) > 40 * linear_regression_lipschitz(X, y, weight_norm=0.7)


def test_spectral_norms_alone_do_not_bound_several_outputs():
    X = np.eye(2)
    L = linear_regression_lipschitz(X, X, weight_norm=0.1, supremum=True)
    batch = Batch("mse", X, np.array([[-0.1, 0.0], [0.0, 0.0]]), X)
    assert (0.1 + 1) / 2 < norm(batch.gradient()) <= L


@given(matrices(5, 3), arrays(float, 5, elements=st.integers(-20, 20)), st.floats(0.01, 100))
def test_the_networks_constant_is_the_regressions_for_aligned_targets_only(X, y, longest):
    """[L] 4.3 takes ‖y‖ ‖X‖ for ‖y^T X‖; true where y is a leading left singular vector."""
    assume(X.any())

    def both(y, supremum):
        network = lipschitz_constant(
            "mse",
            batch_size=5,
            k_z=norm(X, 2),
            k_a=longest * norm(X, 2),
            target_norm=norm(y),
            supremum=supremum,
        )
        regression = linear_regression_lipschitz(X, y, weight_norm=longest, supremum=supremum)
        return network, regression

    network, regression = both(y, True)
    assert regression <= network * ROUNDING
    gap = norm(y) * norm(X, 2) - norm(X.T @ y)
    assert network - regression == pytest.approx(gap / 5, abs=1e-9 * network)
    aligned = 7.0 * np.linalg.svd(X)[0][:, 0]
    assume(abs(longest * norm(X, 2) - 7.0) > 1e-3)
    for supremum in (False, True):
        network, regression = both(aligned, supremum)
        assert network == pytest.approx(regression, rel=1e-6)
