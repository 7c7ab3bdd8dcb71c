"""fastai's rules and range test, and torch-lr-finder's own."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.bench.peers import PEERS
from experiments.bench.sweeps import (
    HIGHEST,
    LOWEST,
    Sweep,
    minimum,
    range_sweep,
    run_fastai,
    run_lr_finder,
    slide,
    steep,
    suggested,
    sweep_steps,
    valley,
)
from experiments.bench.tasks import make_task
from lrsearch import Split, TaskData, TrainingTask
from lrsearch.training.batches import Batches
from lrsearch.training.loop import (
    build_model,
    evaluate,
    first_batch,
    loss_function,
    steps_per_epoch,
)

RULES = {"valley": valley, "slide": slide, "minimum": minimum, "steep": steep}

# What fastai 2's own functions suggest on these curves, run once as published (schedule.py).
FASTAI = {
    "clean": (0.057543994, 8.3176377e-06, 0.052480746, 0.0091201084),
    "noisy": (0.30199517, 0.057543994, 0.052480746, 0.083176377),
    "blown": (0.0091201084, 8.3176377e-06, 0.030199517, 0.0091201084),
    "flat": (0.17378008, 0.069183097, 9.1201084e-08, 0.083176377),
    "early": (1.2022644e-05, 3.3113112e-06, 9.1201084e-08, 7.5857758e-07),
}


def recorded(kind):
    rates = 1e-7 * 1e8 ** (np.arange(100) / 100)
    decades = np.log10(rates)
    noise = np.random.default_rng(0).normal(size=100)
    fall = 2.3 - 1.8 / (1.0 + np.exp(-3.0 * (decades + 2.0)))
    losses = {
        "clean": fall + 0.02 * noise,
        "noisy": fall + 0.3 * noise,
        "blown": fall + 0.02 * noise + np.exp(4.0 * (decades - 0.2)),
        "flat": 2.3 + 0.1 * noise,
        "early": (fall + 0.02 * noise)[:40],
    }[kind]
    if kind == "blown":
        losses[97:] = np.nan
    if kind == "early":
        losses[38:] = [9.0, 30.0]
    return Sweep(rates[: len(losses)], losses, 100)


@pytest.mark.parametrize("kind", FASTAI)
def test_the_rules_suggest_what_fastai_suggests(kind):
    sweep = recorded(kind)
    found = [suggested(sweep, rule) for rule in RULES.values()]
    assert found == pytest.approx(FASTAI[kind], rel=1e-7)


def test_losses_after_one_that_is_not_a_number_are_not_looked_at():
    sweep = recorded("clean")
    sweep.losses[60:] = np.nan
    cut = Sweep(sweep.rates[:65], sweep.losses[:65], 100)  # the last 5 are left out besides
    for rule in RULES.values():
        assert suggested(sweep, rule) == suggested(cut, rule) < sweep.rates[60]


def test_the_range_test_grows_the_rate_as_fastai_does_and_gives_up_on_a_fourfold_loss():
    task = make_task("digits-mlp", "none", "sgd")
    data = task.data(0)
    sweep = range_sweep(task, data, 0)
    planned = steps_per_epoch(task, data) * task.epochs // 4
    assert sweep.planned == sweep_steps(task, data) == planned == 85
    expected = LOWEST * (HIGHEST / LOWEST) ** (np.arange(len(sweep.rates)) / planned)
    np.testing.assert_allclose(sweep.rates, expected, rtol=1e-12)
    # The first smoothed loss is the first batch's own, at the first weights.
    inputs, targets = first_batch(task, data, 0)
    first = loss_function(task.loss)(build_model(task, data, 0)(inputs), targets)
    assert sweep.losses[0] == pytest.approx(float(first.detach()), rel=1e-6)

    explosive = make_task("digits-mlp", "inputs x 100", "sgd")
    short = range_sweep(explosive, explosive.data(0), 0)
    assert len(short.losses) < short.planned
    least = np.minimum.accumulate(short.losses)
    assert short.losses[-1] > 4.0 * least[-1]
    assert (short.losses[:-1] <= 4.0 * least[:-1]).all()


class Scripted(torch.nn.Module):
    """Its squared error is 1 at the first step, and ``second`` at the one after."""

    def __init__(self, second):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.losses = iter([1.0, second])

    def forward(self, inputs):
        return (next(self.losses, 1.0) ** 0.5 + 0.0 * self.weight).expand(len(inputs), 1)


# The second smoothed loss is (0.98 + second) / 1.98: 3.98 and 4.03.
@pytest.mark.parametrize(("second", "steps"), [(6.9, 100), (7.0, 2)])
def test_a_sweep_is_given_up_where_its_smoothed_loss_is_four_times_the_least(second, steps):
    rows = Split(torch.zeros(8, 1), torch.zeros(8, 1))
    data = TaskData(rows, rows, rows, outputs=1)
    task = TrainingTask(
        "scripted",
        lambda seed: data,
        lambda data: Scripted(second),
        "mse",
        "mse",
        epochs=400,
        batch_size=8,
    )
    assert len(range_sweep(task, data, 0).losses) == steps


def test_a_range_test_takes_at_most_100_steps_and_a_quarter_of_the_budget():
    long = make_task("breast-cancer-linear", "batch 8", "sgd")
    assert sweep_steps(long, long.data(0)) == 100
    short = make_task("digits-mlp", "short budget", "sgd")
    assert sweep_steps(short, short.data(0)) == 2 * 34 // 4


@pytest.mark.parametrize("kind", ["none", "short budget", "inputs x 100"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["fastai valley", "fastai steep", "torch-lr-finder"])
def test_a_suggested_rate_is_trained_at_from_the_first_weights(name, optimizer, kind, capfd):
    peer = PEERS[name]
    if peer.package is not None:
        pytest.importorskip("torch_lr_finder")
    task = replace(make_task("digits-mlp", kind, optimizer), epochs=4)
    data = task.data(1)
    found = peer.run(task, data, 1)
    again = peer.run(task, data, 1)
    assert found == again
    assert 1e-7 <= found.lr <= 10.0
    budget = steps_per_epoch(task, data) * task.epochs
    swept = found.steps - budget if not found.diverged else None
    assert swept is None or 0 < swept <= sweep_steps(task, data)
    assert capfd.readouterr() == ("", "")


def test_a_rule_that_fails_leaves_the_first_weights_and_pays_for_its_sweep():
    def fails(rates, losses, planned):
        raise IndexError("index -16 is out of bounds")

    task = make_task("digits-mlp", "none", "sgd")
    data = task.data(0)
    found = run_fastai(fails, task, data, 0)
    assert found.diverged
    assert found.reason == "IndexError: index -16 is out of bounds"
    assert np.isnan(found.lr)
    assert found.steps == len(range_sweep(task, data, 0).losses)
    assert found.test_metric == evaluate(task, build_model(task, data, 0), data.test).metric


def test_torch_lr_finder_is_fed_the_batches_of_the_run():
    package = pytest.importorskip("torch_lr_finder")
    task = make_task("digits-linear", "none", "sgd")
    data = task.data(0)
    fed = []

    class Spy(package.TrainDataLoaderIter):
        def inputs_labels_from_batch(self, batch):
            fed.append(batch)
            return super().inputs_labels_from_batch(batch)

    run_lr_finder(
        SimpleNamespace(LRFinder=package.LRFinder, TrainDataLoaderIter=Spy), task, data, 0
    )
    batches = Batches(data.train, task.batch_size, 0)
    expected = [*batches, *batches, *batches][: len(fed)]
    assert len(fed) > len([*batches])
    for pair, wanted in zip(fed, expected, strict=True):
        assert torch.equal(pair[0], wanted[0])
        assert torch.equal(pair[1], wanted[1])
