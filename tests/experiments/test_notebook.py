"""The notebooks' controller against what they do, written down plainly, window by window."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from experiments.exptest.notebook import NotebookExpTest, slope_pvalue
from experiments.exptest.notebook_fit import notebook_f_test

FEATURES, STEPS = 6, 400


@dataclass
class Account:
    """What happened: looks as (last step, test, losses in the window, passed), rates, restarts."""

    lr: float
    looks: list = field(default_factory=list)
    restarts: list = field(default_factory=list)
    dead: bool = False


def window_of(first_loss, lr):
    """Eq. 52, rounded half to even."""
    exact = 2 * math.sqrt(2) * first_loss / (lr * math.e)
    below = math.floor(exact)
    if exact - below == 0.5:
        return below + below % 2
    return math.floor(exact + 0.5)


def published(losses, gradients, lr, *, alpha, beta, f_test, correct=True):
    """What the notebooks do, one window after another (peers.md 4a, items 3, 9, 10, 11).

    Args:
        losses: of each step.
        gradients: of each step, or None.
        correct: whether windows are corrected (MNIST), or weights drawn anew (housing).
    """
    account = Account(lr)
    searching, start = True, 0
    length, magnitudes, resultant = window_of(losses[0], lr), 0.0, np.zeros(FEATURES)
    while True:
        if length < 2:  # the run's first step plans; by then the window has been missed
            account.dead = True
            return account
        whole = length
        if correct:
            # The step that plans is not summed, nor is the one that ends the uncorrected window.
            first_summed = start + 1 if start == 0 else start
            for gradient in gradients[first_summed : start + length - 1]:
                magnitudes += np.linalg.norm(gradient)
                resultant = resultant + gradient
            if start + length > len(losses):
                return account
            if np.linalg.norm(resultant) == 0.0:
                account.dead = True
                return account
            whole = round(magnitudes / np.linalg.norm(resultant) * length)
            if whole == length:  # that step is spent on correcting: no test, ever
                account.dead = True
                return account
        if start + whole > len(losses):
            return account
        window = losses[start : start + whole]
        if searching:
            passed = f_test(window)[1] < alpha
        elif whole == 2:
            passed = False  # Student's t on 0 degrees of freedom is undefined
        else:
            slope = stats.linregress(np.arange(whole), window, alternative="less")
            passed = slope.pvalue < alpha
        account.looks.append((start + whole - 1, "F" if searching else "t", whole, bool(passed)))
        start += whole
        if passed:
            searching = False  # sums go on
            continue
        if searching and not correct:
            account.restarts.append(start - 1)
        account.lr *= beta
        length = window_of(losses[0], account.lr)
        magnitudes, resultant = 0.0, np.zeros(FEATURES)


def told(losses, gradients, lr, *, alpha, beta, f_test, correct=True):
    """The same, by the controller at work."""
    parameter = nn.Parameter(torch.zeros(FEATURES))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    account = Account(lr)
    taken = 0
    notebook = NotebookExpTest(
        optimizer,
        alpha=alpha,
        beta=beta,
        parameters=[parameter] if correct else None,
        reinitialise=None if correct else lambda: account.restarts.append(taken),
        f_test=f_test,
    )
    kinds = []
    for taken, loss in enumerate(losses):  # the restart notes it
        parameter.grad = torch.tensor(gradients[taken], dtype=torch.float32)
        decision = notebook.step(torch.tensor(loss, dtype=torch.float64))
        kinds.append(decision.kind)
        assert decision.lr == notebook.lr == optimizer.param_groups[0]["lr"]
    assert torch.all(parameter == 0.0)
    account.lr = notebook.lr
    account.looks = [(at, kind, n, passed) for at, kind, n, _, passed in notebook.looks]
    return account, kinds, notebook


def bent(window):
    """A stand-in for the F-test with two clear answers: the second half lies lower, or not."""
    half = len(window) // 2
    return 0.0, 0.0 if np.mean(window[half:]) < np.mean(window[:half]) - 0.02 else 1.0


def training(steps, *, direction, fall, first, seed):
    """Losses that fall and stop, with noise; gradients of which ``direction`` is common."""
    rng = np.random.default_rng(seed)
    losses = first * (0.2 + 0.8 * np.exp(-fall * np.arange(steps) / steps))
    losses = losses + 0.05 * first * rng.standard_normal(steps)
    losses[0] = first
    gradients = rng.standard_normal((steps, FEATURES)).astype(np.float32)
    gradients[:, 0] += np.float32(direction)
    return losses.tolist(), gradients


@settings(max_examples=60, deadline=None)
@given(
    window=st.integers(2, 40),
    direction=st.floats(0.0, 30.0),
    fall=st.floats(0.0, 40.0),
    alpha=st.sampled_from((0.1, 0.05, 0.01)),
    beta=st.sampled_from((0.05, 0.1, 0.33, 0.7)),
    correct=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_windows_rates_and_verdicts_are_those_of_the_notebooks(
    window, direction, fall, alpha, beta, correct, seed
):
    losses, gradients = training(STEPS, direction=direction, fall=fall, first=2.3, seed=seed)
    lr = 2 * math.sqrt(2) * 2.3 / (math.e * window)
    choice = {"alpha": alpha, "beta": beta, "f_test": bent, "correct": correct}
    expected = published(losses, gradients, lr, **choice)
    found, kinds, _ = told(losses, gradients, lr, **choice)
    assert found.looks == expected.looks
    assert found.lr == pytest.approx(expected.lr, rel=1e-12)
    assert found.restarts == expected.restarts
    looks = {at: (kind, passed) for at, kind, _, passed in expected.looks}
    says = {("F", True): "accept", ("F", False): "restart", ("t", True): "continue"}
    for step, kind in enumerate(kinds):
        assert kind == (says.get(looks[step], "decay") if step in looks else "continue")


def test_the_comparison_above_sees_restarts_decays_passes_and_dead_locks():
    seen = set()
    for seed in range(40):
        losses, gradients = training(STEPS, direction=seed / 4, fall=seed, first=2.3, seed=seed)
        account = published(losses, gradients, 0.3, alpha=0.05, beta=0.33, f_test=bent)
        seen |= {(kind, passed) for _, kind, _, passed in account.looks} | {account.dead}
    assert seen == {("F", True), ("F", False), ("t", True), ("t", False), True, False}


@pytest.mark.parametrize("correct", [True, False])
def test_with_the_notebooks_own_f_test_too(correct):
    losses, gradients = training(STEPS, direction=2.0, fall=30.0, first=2.3, seed=1)
    choice = {"alpha": 0.05, "beta": 0.33, "f_test": notebook_f_test, "correct": correct}
    expected = published(losses, gradients, 0.2, **choice)
    found, _, notebook = told(losses, gradients, 0.2, **choice)
    assert len(expected.looks) >= 3
    assert found.looks == expected.looks
    failed = [kind for _, kind, _, passed in expected.looks if not passed]
    accepted = [at for at, kind, _, passed in expected.looks if kind == "F" and passed]
    story = notebook.story()
    assert (story.restarts, story.decays) == (failed.count("F"), failed.count("t"))
    assert story.accepted == (accepted[0] if accepted else None)
    assert story.rate == notebook.lr


# --- single facts ----------------------------------------------------------------------------


def never(window):
    return 0.0, 1.0


def always(window):
    return 0.0, 0.0


def rate_for(exact, first=2.0):
    """The rate at which Eq. 52 gives ``exact`` steps, to the last bit where that is possible."""
    lr = 2.0 * math.sqrt(2.0) * first / (exact * math.e)
    for candidate in (lr, *(np.nextafter(lr, end) for end in (0.0, 1.0))):
        if 2.0 * math.sqrt(2.0) * first / (float(candidate) * math.e) == exact:
            return float(candidate)
    return None


@pytest.mark.parametrize(("exact", "whole"), [(4.5, 4), (5.5, 6), (6.5, 6), (7.5, 8), (5.49, 5)])
def test_windows_are_rounded_half_to_even(exact, whole):
    first, lr = next(
        (first, lr)
        for first in np.linspace(2.0, 3.0, 200).tolist()
        if (lr := rate_for(exact, first)) is not None
    )
    losses = [first] * 20
    found, _, _ = told(
        losses, np.ones((20, 6)), lr, alpha=0.05, beta=0.33, f_test=always, correct=False
    )
    assert found.looks[0][:3] == (whole - 1, "F", whole)


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("window", [0, 1])
def test_a_window_of_no_or_one_step_is_never_tested(window, correct):
    losses, gradients = training(300, direction=0.5, fall=10, first=2.3, seed=0)
    lr = 2 * math.sqrt(2) * 2.3 / (math.e * (window + 0.2))
    found, kinds, _ = told(
        losses, gradients, lr, alpha=0.05, beta=0.33, f_test=never, correct=correct
    )
    assert found.looks == []
    assert set(kinds) == {"continue"}
    assert found.lr == lr


def test_a_window_that_needs_no_correction_is_never_tested():
    """Gradients that all point one way give c_w = (w - 2) / (w - 2) = 1."""
    losses, _ = training(300, direction=0, fall=10, first=2.3, seed=0)
    found, _, _ = told(losses, np.ones((300, 6)), 0.2, alpha=0.05, beta=0.33, f_test=never)
    assert found.looks == []
    assert found.lr == 0.2


def zigzag(steps, lengths):
    """Gradients along +1 whose length is 1, but ``lengths`` at the steps named."""
    gradients = np.zeros((steps, FEATURES))
    gradients[:, 0] = 1.0
    for step, length in lengths.items():
        gradients[step, 0] = length
    return gradients


def test_the_first_step_and_the_windows_last_are_left_out_of_the_sums():
    """w = 10: steps 1 to 8 count. A backward gradient there, and only there, lengthens it."""
    lr = 2 * math.sqrt(2) * 2.0 / (math.e * 10)
    for step, counts in ((0, False), (1, True), (8, True), (9, False)):
        gradients = zigzag(40, {step: -1.0})
        found, _, _ = told([2.0] * 40, gradients, lr, alpha=0.05, beta=0.33, f_test=always)
        # 8 steps along, or 7 along and 1 back: c_w = 8 / 6.
        assert [look[:3] for look in found.looks[:1]] == ([(12, "F", 13)] if counts else [])


def test_later_windows_leave_out_their_last_step_alone_and_sums_go_on_over_a_pass():
    """First window: 7 along, 1 back: 13 steps. Second: 9 more along: c_w = 17 / 15, 11 steps."""
    lr = 2 * math.sqrt(2) * 2.0 / (math.e * 10)
    losses = [2.0 - 0.01 * step + 0.001 * (-1) ** step for step in range(60)]
    found, _, _ = told(losses, zigzag(60, {4: -1.0}), lr, alpha=0.05, beta=0.33, f_test=always)
    assert round(17 / 15 * 10) == 11
    assert [look[:3] for look in found.looks[:2]] == [(12, "F", 13), (23, "t", 11)]
    # A backward step among the nine, first one included: 16 + 1 steps, 13 along.
    for step in (13, 21):
        gradients = zigzag(60, {4: -1.0, step: -1.0})
        found, _, _ = told(losses, gradients, lr, alpha=0.05, beta=0.33, f_test=always)
        assert found.looks[1][2] == round(17 / 13 * 10)
    # The tenth is the one that corrects.
    gradients = zigzag(60, {4: -1.0, 22: -1.0})
    found, _, _ = told(losses, gradients, lr, alpha=0.05, beta=0.33, f_test=always)
    assert found.looks[1][2] == 11


def test_a_failed_test_resets_the_sums_and_plans_for_the_lower_rate():
    lr = 2 * math.sqrt(2) * 2.0 / (math.e * 10)
    gradients = zigzag(100, {4: -1.0, 20: -1.0})  # one back in each window
    found, kinds, _ = told([2.0] * 100, gradients, lr, alpha=0.05, beta=0.5, f_test=never)
    # Second window: w = 20, 19 steps, 18 along and one back.
    assert [look[:3] for look in found.looks[:2]] == [(12, "F", 13), (12 + 22, "F", 22)]
    assert round(19 / 17 * 20) == 22
    assert kinds[12] == "restart"


def test_the_length_of_an_earlier_window_does_not_end_a_longer_one():
    """13 steps ended the first window; the second, of 20, may not be tested at its 13th."""
    lr = 2 * math.sqrt(2) * 2.0 / (math.e * 10)
    gradients = zigzag(100, {4: -1.0, 20: -1.0})
    found, _, _ = told([2.0] * 100, gradients, lr, alpha=0.05, beta=0.5, f_test=never)
    assert found.looks[1][0] != 12 + 13


class Weights:
    """A small regression whose weights a controller may draw anew."""

    def __init__(self, *, housing, f_test):
        torch.manual_seed(0)
        self.parameter = nn.Parameter(torch.ones(3))
        self.optimizer = torch.optim.SGD([self.parameter], lr=0.5)
        self.drawn = 0
        self.notebook = NotebookExpTest(
            self.optimizer,
            parameters=None if housing else [self.parameter],
            reinitialise=self.draw if housing else None,
            f_test=f_test,
        )

    def draw(self):
        self.drawn += 1
        with torch.no_grad():
            self.parameter.copy_(torch.randn(3))

    def walk(self, losses):
        """Kinds of decisions, and the steps after which the weights were other than before."""
        kinds, changed = [], []
        for step, loss in enumerate(losses):
            self.parameter.grad = torch.tensor([1.0, (-1.0) ** step, 0.5])
            before = self.parameter.detach().clone()
            kinds.append(self.notebook.step(torch.tensor(loss)).kind)
            if not torch.equal(before, self.parameter):
                changed.append(step)
        return kinds, changed


def test_mnist_keeps_its_weights_at_a_failed_f_test():
    run = Weights(housing=False, f_test=never)
    kinds, changed = run.walk([2.0] * 300)
    assert kinds.count("restart") >= 2
    assert changed == []
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(
        0.5 * 0.33 ** kinds.count("restart")
    )


def test_housing_draws_new_weights_at_each_failed_f_test():
    run = Weights(housing=True, f_test=never)
    kinds, changed = run.walk([2.0] * 100)
    restarts = [step for step, kind in enumerate(kinds) if kind == "restart"]
    assert len(restarts) >= 2
    assert changed == restarts
    assert run.drawn == len(restarts)


@pytest.mark.parametrize("housing", [True, False])
def test_a_flat_window_in_training_lowers_the_rate_and_keeps_the_weights(housing):
    run = Weights(housing=housing, f_test=always)
    rng = np.random.default_rng(0)
    kinds, changed = run.walk((2.0 + 0.01 * rng.standard_normal(400)).tolist())
    assert kinds.count("accept") == 1
    assert kinds.count("decay") >= 2
    assert "restart" not in kinds
    assert changed == []
    assert run.notebook.lr == pytest.approx(0.5 * 0.33 ** kinds.count("decay"))


@pytest.mark.parametrize("trouble", [RuntimeError, TypeError, ValueError])
def test_a_fit_that_fails_counts_as_a_failed_test(trouble):
    def fails(window):
        raise trouble("no fit")

    kinds, _ = Weights(housing=True, f_test=fails).walk([2.0] * 20)
    assert "restart" in kinds
    assert "accept" not in kinds


@pytest.mark.parametrize("first", [float("nan"), float("inf")])
def test_a_first_loss_that_is_not_finite_is_never_tested(first):
    kinds, _ = Weights(housing=True, f_test=never).walk([first, *[2.0] * 50])
    assert set(kinds) == {"continue"}


# --- the t-test ------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    losses=st.lists(st.floats(-100.0, 100.0), min_size=3, max_size=60),
    scale=st.sampled_from((1e-3, 1.0, 1e3)),
)
def test_the_slopes_p_value_is_that_of_scipy(losses, scale):
    values = scale * np.array(losses)
    steps = np.arange(len(losses))
    expected = stats.linregress(steps, values, alternative="less")
    # Away from perfect lines, whose residuals are rounding alone.
    assume(expected.stderr > 1e-6 * np.ptp(values) / len(losses) > 0.0)
    assert slope_pvalue(values.tolist()) == pytest.approx(expected.pvalue, rel=1e-6)


def test_the_slopes_p_value_is_small_for_a_fall_and_large_for_a_rise():
    noise = np.random.default_rng(0).standard_normal(50)
    steps = np.arange(50.0)
    assert slope_pvalue((noise - steps).tolist()) < 1e-10
    assert slope_pvalue((noise + steps).tolist()) > 1.0 - 1e-10


@pytest.mark.parametrize("losses", [[1.0] * 10, [0.0] * 3])
def test_losses_that_do_not_move_have_no_p_value(losses):
    assert math.isnan(slope_pvalue(losses))
