"""The guard of validation: which weights are kept, and when a rise counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lrsearch.training.guard import LEVEL, ValidationGuard

ROWS = 200


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def shift(model, by=1.0):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(by)


def row_losses(seed=0):
    return np.random.default_rng(seed).exponential(size=ROWS)


def rise(by, seed):
    """Each row's own change, whose mean is ``by``."""
    return by + 0.1 * np.random.default_rng(seed).standard_normal(ROWS)


def test_a_rise_counts_at_the_second_look_in_a_row_while_training_falls():
    guard, base = ValidationGuard(make_model()), row_losses()
    assert not guard.see(base, 0.5, 1.0, 10)
    assert not guard.see(base + rise(0.1, 1), 0.5, 0.9, 20)
    assert guard.see(base + rise(0.1, 2), 0.7, 0.8, 30)
    assert (guard.step, guard.lowest_step) == (30, 10)  # the best score, and where the rise began


def test_of_equal_scores_the_last_is_kept_unless_its_losses_are_shown_to_be_higher():
    guard, base = ValidationGuard(make_model()), row_losses()
    guard.see(base, 0.5, 1.0, 10)
    guard.see(base + rise(0.001, 1), 0.5, 0.9, 20)
    assert guard.step == 20
    guard.see(base + rise(0.1, 2), 0.5, 0.9, 30)
    assert guard.step == 20
    guard.see(base + rise(0.1, 3), 0.6, 0.9, 40)
    assert guard.step == 40


def test_a_look_without_a_rise_begins_the_count_anew():
    guard, base = ValidationGuard(make_model()), row_losses()
    looks = [
        (base, 0.5, 1.0),
        (base + rise(0.1, 1), 0.5, 0.9),
        (base + rise(0.0, 5), 0.5, 0.9),
        (base + rise(0.1, 2), 0.5, 0.8),
    ]
    assert [guard.see(*look, step) for step, look in enumerate(looks)] == [False] * 4
    assert guard.see(base + rise(0.1, 3), 0.5, 0.7, 9)


def test_losses_that_rise_on_the_training_rows_too_are_not_this_guards_matter():
    guard, base = ValidationGuard(make_model()), row_losses()
    guard.see(base, 0.5, 1.0, 10)
    assert not any(guard.see(base + rise(0.5, n), 0.5, 1.1, n) for n in range(1, 6))


def test_noise_is_called_a_rise_no_more_often_than_the_level_says():
    wrong = 0
    for seed in range(300):
        guard, base = ValidationGuard(make_model()), row_losses(seed)
        guard.see(base, 0.5, 1.0, 1)
        gaps = rise(0.0, 1000 + seed)
        guard.see(base + gaps, 0.5, 0.9, 2)
        wrong += guard.see(base + gaps, 0.5, 0.8, 3)
    assert wrong <= stats.binom.ppf(0.999, 300, LEVEL)


def test_the_weights_of_the_best_score_come_back_buffers_too():
    model = make_model()
    guard, base = ValidationGuard(model), row_losses()
    assert not guard.restore()  # there are none yet
    guard.see(base, 0.5, 1.0, 1)
    shift(model)
    guard.see(base + 1.0, 0.7, 0.9, 2)  # though its loss is larger
    shift(model)
    best = values(model)
    guard.see(base + 1.0, 0.7, 0.9, 3)  # of equal scores the last: the calmer weights
    for step in range(4, 7):
        shift(model)
        guard.see(base + rise(0.1, step), 0.6, 0.8, step)
    assert guard.step == 3
    assert guard.restore()
    for name, tensor in values(model).items():
        assert torch.equal(tensor, best[name])
    # What comes back is a copy: training goes on without spoiling it.
    shift(model)
    guard.restore()
    assert torch.equal(model.state_dict()["0.weight"], best["0.weight"])
    # Rises are counted anew, from the weights that are back.
    assert not guard.see(base + 1.0 + rise(-0.1, 1), 0.5, 0.7, 9)
    assert not guard.see(base + 1.5 + rise(0.1, 9), 0.5, 0.6, 10)
    assert guard.see(base + 1.5 + rise(0.1, 10), 0.5, 0.6, 11)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_losses_that_are_not_finite_neither_count_nor_are_kept(bad):
    model = make_model()
    guard, base = ValidationGuard(model), row_losses()
    broken = base.copy()
    broken[3] = bad
    assert not guard.see(broken, 0.5, 1.0, 1)
    assert not guard.restore()
    guard.see(base, 0.5, 1.0, 2)
    assert not guard.see(broken, 0.5, 0.9, 3)
    assert guard.step == 2


@pytest.mark.parametrize(("rows", "told"), [(1, False), (2, False), (ROWS, True)])
def test_few_rows_tell_nothing_and_rows_that_all_rise_alike_tell_all(rows, told):
    guard = ValidationGuard(make_model())
    guard.see(np.zeros(rows), 0.5, 1.0, 1)
    assert not guard.see(np.ones(rows), 0.5, 0.5, 2)
    assert guard.see(np.ones(rows), 0.5, 0.5, 3) == told


@pytest.mark.parametrize("cut", range(5))
def test_a_guard_that_was_saved_goes_on_exactly(cut):
    base = row_losses()
    looks = [
        (base, 0.5, 1.0),
        (base - 0.01, 0.7, 0.95),
        (base + rise(0.1, 1), 0.6, 0.9),
        (base + rise(0.1, 2), 0.7, 0.8),
        (base + rise(0.1, 3), 0.6, 0.7),
    ]

    def walk(guard, model, places, told):
        for step in places:
            shift(model, 0.1)
            told.append(guard.see(*looks[step], step))

    whole, model = [], make_model()
    guard = ValidationGuard(model)
    walk(guard, model, range(5), whole)
    guard.restore()

    parts, first = [], make_model()
    left = ValidationGuard(first)
    walk(left, first, range(cut), parts)
    saved = left.state_dict()
    second = make_model()
    second.load_state_dict(first.state_dict())
    taken = ValidationGuard(second)
    taken.load_state_dict(saved)
    shift(first, 5.0)  # the old process's weights are no part of it
    walk(taken, second, range(cut, 5), parts)
    assert parts == whole
    assert taken.step == guard.step
    taken.restore()
    for name, tensor in values(second).items():
        assert torch.equal(tensor, values(model)[name])


@pytest.mark.parametrize("alpha", [0.0, 1.0, float("nan")])
def test_a_level_outside_0_and_1_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        ValidationGuard(make_model(), alpha=alpha)
