"""The limits of each update: against the roots of its recursion and torch's own optimizers."""

import doctest
from functools import partial
from math import inf, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.bounds import averaged_limit, heavy_ball_limit, nesterov_limit, stability
from lrsearch.errors import LrsearchError

# One step as a matrix on (weight, velocity), written down from torch's update, not from a formula.


def heavy_ball_step(rate, h, mu, tau):
    return np.array([[1 - rate * (1 - tau) * h, -rate * mu], [(1 - tau) * h, mu]])


def nesterov_step(rate, h, mu):
    velocity = np.array([h, mu])
    return np.array([np.array([1, 0]) - rate * (np.array([h, 0]) + mu * velocity), velocity])


def averaged_step(rate, h, beta, omega):
    average = np.array([(1 - beta) * h, beta])
    return np.array([np.array([1 - rate * omega, 0]) - rate * average, average])


def radius(matrix):
    return float(np.abs(np.linalg.eigvals(matrix)).max())


fractions = st.floats(0, 0.99)
curvatures = st.floats(1e-3, 1e3)


@settings(max_examples=200, deadline=None)
@given(curvatures, fractions, fractions, st.floats(0, 100), st.floats(0.01, 0.99))
def test_the_largest_root_crosses_one_at_the_limit_and_not_before(h, mu, tau, omega, share):
    cases = [
        (heavy_ball_limit(h, mu, tau), partial(heavy_ball_step, h=h, mu=mu, tau=tau * (mu > 0))),
        (nesterov_limit(h, mu), partial(nesterov_step, h=h, mu=mu)),
        (averaged_limit(h, mu), partial(averaged_step, h=h, beta=mu, omega=0.0)),
        (averaged_limit(h, mu, omega), partial(averaged_step, h=h, beta=mu, omega=omega)),
    ]
    for limit, step in cases:
        assert radius(step(limit)) == pytest.approx(1.0, rel=1e-6)
        assert radius(step(0.999 * limit)) < 1.0
        assert radius(step(share * limit)) < 1.0
        assert radius(step(1.001 * limit)) > 1.0


# An Adam whose second moment does not move: 1 - beta2 is next to nothing, and its step is late.
FROZEN = 1.0 - 1e-15
CURVATURES = torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64)
SCALES = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
PRECONDITIONED = float((CURVATURES / SCALES).max())


def frozen_state(optimizer, weights):
    """As if the second moment had converged to SCALES^2 long ago."""
    if isinstance(optimizer, torch.optim.RMSprop):
        state = {"step": torch.tensor(1.0), "square_avg": SCALES**2}
        if optimizer.defaults["momentum"]:
            state["momentum_buffer"] = torch.zeros_like(weights)
        optimizer.state[weights] = state
    elif isinstance(optimizer, torch.optim.Adam):
        zeros = torch.zeros_like(weights)
        state = {"step": torch.tensor(1e18, dtype=torch.float64), "exp_avg": zeros}
        optimizer.state[weights] = state | {"exp_avg_sq": SCALES**2}


SGD, RMSprop = torch.optim.SGD, partial(torch.optim.RMSprop, alpha=FROZEN, eps=0)
Adam = partial(torch.optim.Adam, eps=0)
AdamW = partial(torch.optim.AdamW, eps=0)
DECAY = 0.3
OPTIMIZERS = {
    "descent": (SGD, heavy_ball_limit(3.0)),
    "heavy ball": (partial(SGD, momentum=0.9), heavy_ball_limit(3.0, 0.9)),
    "dampened": (
        partial(SGD, momentum=0.7, dampening=0.4),
        heavy_ball_limit(3.0, 0.7, 0.4),
    ),
    "dampening without momentum": (partial(SGD, dampening=0.4), heavy_ball_limit(3.0, 0.0, 0.4)),
    "nesterov": (partial(SGD, momentum=0.9, nesterov=True), nesterov_limit(3.0, 0.9)),
    "coupled decay": (partial(SGD, weight_decay=DECAY), heavy_ball_limit(3.0 + DECAY)),
    "rmsprop": (RMSprop, heavy_ball_limit(PRECONDITIONED)),
    "rmsprop, momentum": (
        partial(RMSprop, momentum=0.8),
        heavy_ball_limit(PRECONDITIONED, 0.8),
    ),
    "adam": (partial(Adam, betas=(0.9, FROZEN)), averaged_limit(PRECONDITIONED, 0.9)),
    "adamw": (
        partial(AdamW, betas=(0.9, FROZEN), weight_decay=DECAY),
        averaged_limit(PRECONDITIONED, 0.9, DECAY),
    ),
}


def distance_at_the_end(make, rate, steps=1500):
    """From the minimum; the run ends early where it is a thousand times the start's.

    Far out, an adaptive optimizer's second moment would move after all, and tame it.
    """
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = make([weights], lr=rate)
    frozen_state(optimizer, weights)
    for _ in range(steps):
        weights.grad = CURVATURES * weights.detach()
        optimizer.step()
        if (distance := float(weights.detach().abs().max())) > 1e3:
            break
    return distance


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torchs_optimizer_converges_just_below_and_diverges_just_above(name):
    make, limit = OPTIMIZERS[name]
    assert distance_at_the_end(make, 0.99 * limit) < 1e-3
    assert distance_at_the_end(make, 1.01 * limit) > 1e3


@pytest.mark.parametrize("sharpness", [0.0, -2.0, -inf])
def test_without_curvature_there_is_no_limit(sharpness):
    assert heavy_ball_limit(sharpness, 0.9) == inf
    assert nesterov_limit(sharpness, 0.9) == inf
    assert averaged_limit(sharpness, 0.9) == inf


def test_decoupled_decay_alone_bounds_the_rate():
    assert averaged_limit(0.0, 0.9, 0.5) == pytest.approx(4.0)
    assert averaged_limit(-1.0, 0.5, 0.1) == inf


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: heavy_ball_limit(nan), "sharpness"),
        (lambda: heavy_ball_limit("1"), "sharpness"),
        (lambda: heavy_ball_limit(1.0, 1.0), r"momentum must lie in \[0, 1\)"),
        (lambda: heavy_ball_limit(1.0, -0.1), "momentum"),
        (lambda: heavy_ball_limit(1.0, 0.9, 1.0), "dampening"),
        (lambda: nesterov_limit(1.0, 1.5), "momentum"),
        (lambda: averaged_limit(1.0, 1.0), "beta"),
        (lambda: averaged_limit(1.0, 0.9, -1.0), "decoupled_decay"),
    ],
)
def test_bad_arguments_raise_one_line(call, text):
    with pytest.raises(LrsearchError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(stability).failed == 0
