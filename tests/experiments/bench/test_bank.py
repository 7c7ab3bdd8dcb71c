"""A run in the bank is the run of the common loop; tails; checks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.bench.bank import RATES, train_bank
from experiments.bench.rules import make_rule
from experiments.bench.tasks import make_task
from lrsearch import Split, TaskData, TrainingTask
from lrsearch.errors import InvalidArgumentError
from lrsearch.training.loop import (
    SilentObserver,
    build_model,
    evaluate,
    make_optimizer,
    steps_per_epoch,
    train,
)
from lrsearch.training.task import OPTIMIZERS

BASES = ("digits-mlp", "digits-cnn", "digits-transformer", "digits-batchnorm", "diabetes-mlp")
SEEDS = (0, 1)
# Whole in binary, so that the bank's float32 rates are the loop's.
TWO_RATES = {True: (2.0**-10, 2.0**-4), False: (2.0**-14, 2.0**-7)}  # of descent, of the others


class Curve(SilentObserver):
    """Keeps the losses of a run."""

    def __init__(self):
        self.losses = []

    def recorded(self, losses, start, lr):
        assert start == len(self.losses)
        self.losses.extend(losses)


class InDoubles:
    """A task's model in float64."""

    def __init__(self, model):
        self.model = model

    def __call__(self, data):
        return self.model(data).double()


def in_doubles(split):
    targets = split.targets.double() if split.targets.is_floating_point() else split.targets
    return Split(split.inputs.double(), targets)


def assert_runs_are_equal(task, datas, rates, rtol):
    runs = train_bank(task, datas, SEEDS, rates=rates)
    checked = set(runs.checked.tolist())
    for at, (data, seed) in enumerate(zip(datas, SEEDS, strict=True)):
        for column, rate in enumerate(rates):
            model, curve = build_model(task, data, seed), Curve()
            optimizer = make_optimizer(task.optimizer, list(model.parameters()), rate)
            alone = train(task, data, model=model, optimizer=optimizer, seed=seed, observer=curve)
            np.testing.assert_allclose(runs.curves[at, column], curve.losses, rtol=rtol)
            for name in ("train", "validation", "test"):
                both = getattr(runs, name), getattr(alone, name)
                assert both[0].loss[at, column] == pytest.approx(both[1].loss, rel=rtol)
                assert both[0].metric[at, column] == pytest.approx(both[1].metric, rel=rtol)
            assert alone.steps in checked
            assert runs.checks[at, column, -1] == runs.validation.loss[at, column]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("base", BASES)
def test_a_banks_run_is_the_run_of_the_common_loop(base, optimizer):
    """In float64, so that nothing but the float32 in which the bank keeps losses differs.

    In float32 gradients that are zero but for rounding (a bias before batch normalisation, the
    keys' bias in attention) are scaled up to whole steps by Adam and RMSprop, and runs part.
    """
    task = replace(make_task(base, "none", optimizer), epochs=1)
    task = replace(task, model=InDoubles(task.model))
    datas = [
        replace(
            data,
            train=in_doubles(data.train),
            validation=in_doubles(data.validation),
            test=in_doubles(data.test),
        )
        for data in map(task.data, SEEDS)
    ]
    rates = TWO_RATES[optimizer in ("sgd", "momentum")]
    assert_runs_are_equal(task, datas, rates, rtol=float(np.finfo(np.float32).eps))


@pytest.mark.parametrize("base", BASES)
def test_descent_in_float32_stays_within_some_roundings(base):
    task = replace(make_task(base, "none", "sgd"), epochs=1)
    datas = [task.data(seed) for seed in SEEDS]
    # A loss is a mean of 32 terms after some 34 steps: a few units in the last place.
    assert_runs_are_equal(task, datas, TWO_RATES[True], rtol=8 * float(np.finfo(np.float32).eps))


def test_a_scaled_loss_is_the_banks_as_it_is_the_loops():
    for base in ("digits-mlp", "diabetes-mlp"):
        task = replace(make_task(base, "loss x 100", "momentum"), epochs=1)
        datas = [task.data(seed) for seed in SEEDS]
        assert_runs_are_equal(task, datas, (1e-6, 1e-5), rtol=8 * float(np.finfo(np.float32).eps))


class Constant(torch.nn.Module):
    """Answers its weight, whatever is asked."""

    def __init__(self, data):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        return self.weight.expand(len(inputs), 1)


def test_a_tail_falls_by_a_line_to_nothing():
    rows = Split(torch.zeros(20, 1), torch.full((20, 1), 1e4))
    data = TaskData(rows, rows, rows, outputs=1)
    task = TrainingTask(
        "constant", lambda seed: data, Constant, "mse", "mse", epochs=10, batch_size=10
    )
    kept = train_bank(task, [data], [0], rates=[0.01], tail=0.0)
    fallen = train_bank(task, [data], [0], rates=[0.01], tail=0.5)
    # A step on (w - t)^2 multiplies w - t by 1 - 2 lr.
    for runs, rates in (
        (kept, np.full(20, 0.01)),
        (fallen, 0.01 * np.minimum(1.0, (20 - np.arange(20)) / 10)),
    ):
        expected = 1e8 * np.cumprod(np.concatenate([[1.0], (1.0 - 2.0 * rates) ** 2]))
        np.testing.assert_allclose(runs.curves[0, 0], expected[:-1], rtol=1e-5)
        assert runs.train.loss[0, 0] == pytest.approx(expected[-1], rel=1e-5)


def test_validation_is_looked_at_some_twenty_times_and_after_the_last_step():
    task = replace(make_task("wine-linear", "none", "sgd"), epochs=7)
    data = task.data(0)
    runs = train_bank(task, [data], [0], rates=[0.1])
    total = 7 * steps_per_epoch(task, data)
    assert runs.curves.shape == (1, 1, total)
    assert runs.checked[-1] == total
    assert len(runs.checked) == 20
    assert runs.checks.shape == (1, 1, 20)
    # A run of one epoch, of 7 steps, is looked at after each.
    short = train_bank(replace(task, epochs=1), [data], [0], rates=[0.1])
    assert short.checked.tolist() == [1, 2, 3, 4, 5, 6, 7]
    model = build_model(task, data, 0)
    optimizer = make_optimizer("sgd", list(model.parameters()), 0.1)
    train(replace(task, epochs=1), data, model=model, optimizer=optimizer, seed=0)
    at = runs.checked.tolist().index(7)
    expected = evaluate(task, model, data.validation).loss
    assert runs.checks[0, 0, at] == pytest.approx(expected, rel=1e-6)


def test_the_rates_are_half_decades_from_1e_minus_7_to_1e5():
    assert len(RATES) == 25
    assert RATES[0] == pytest.approx(1e-7)
    assert RATES[-1] == pytest.approx(1e5)
    np.testing.assert_allclose(np.diff(np.log10(RATES)), 0.5, rtol=1e-9)


def test_an_unknown_optimizer_has_no_rule():
    with pytest.raises(InvalidArgumentError, match="optimizer must be one of"):
        make_rule("lion", [torch.zeros(1, 1, 2)])


def test_a_run_that_explodes_leaves_its_neighbours_alone():
    task = replace(make_task("diabetes-linear", "none", "sgd"), epochs=3)
    data = task.data(0)
    alone = train_bank(task, [data], [0], rates=[0.01])
    beside = train_bank(task, [data], [0], rates=[1e5, 0.01, 1e4])
    assert not np.isfinite(beside.train.loss[0, [0, 2]]).any()
    np.testing.assert_allclose(beside.curves[0, 1], alone.curves[0, 0], rtol=1e-6)
