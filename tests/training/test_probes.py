"""Probes of a race on real models: where the ladder hangs, what it costs, what counts as dead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lrsearch.controllers.exptest import Decision
from lrsearch.controllers.race import RaceSettings
from lrsearch.training.batches import Batches
from lrsearch.training.loop import build_model, first_batch, loss_function, make_optimizer, train
from lrsearch.training.probes import (
    _Run,
    constant_loss,
    first_rate,
    gets_no_gradient,
    run_race,
)
from lrsearch.training.task import Split, TaskData, TrainingTask

BETA = 0.33


def make_data(seed=0, *, unit=1.0):
    generator = torch.Generator().manual_seed(seed)

    def split(rows):
        inputs = torch.randn(rows, 4, generator=generator)
        return Split(unit * inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long())

    return TaskData(split(120), split(20), split(20), outputs=3)


class Counted(nn.Module):
    """Counts its training passes, and those that only look."""

    passes = 0
    looks = 0

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        Counted.passes += self.training
        Counted.looks += not self.training
        return self.inner(x)


def make_task(**changes):
    options = {"data": make_data, "model": lambda data: Counted(), "epochs": 10, "batch_size": 16}
    return TrainingTask(name="toy", **(options | changes))


@pytest.mark.parametrize("scale", [32.0, 1024.0])
@pytest.mark.parametrize(
    ("optimizer", "power"), [("sgd", -1.0), ("momentum", -1.0), ("adam", 0.0), ("rmsprop", 0.0)]
)
def test_a_loss_in_another_unit_moves_the_ladder_as_it_moves_the_rates_that_train(
    optimizer, power, scale
):
    data = make_data()
    here, calls = first_rate(make_task(optimizer=optimizer), data, 0, BETA)
    there, others = first_rate(make_task(optimizer=optimizer, loss_scale=scale), data, 0, BETA)
    # Adam and RMSprop add 1e-8 to what they divide by: least felt where losses are large.
    assert there == pytest.approx(scale**power * here, rel=1e-3)
    assert calls == others


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_inputs_in_another_unit_move_the_ladder_of_a_linear_model(unit):
    """Weights that start at zero see the same losses at rates of unit^-2."""

    def zero(data):
        model = nn.Linear(4, 3, bias=False)
        nn.init.zeros_(model.weight)
        return model

    task = make_task(model=zero)
    here, _ = first_rate(task, make_data(), 0, BETA)
    there, _ = first_rate(task, make_data(unit=unit), 0, BETA)
    assert there == pytest.approx(here / unit**2, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_first_rate_lowers_its_batch_and_the_next_higher_one_does_not(optimizer, seed):
    task, data = make_task(optimizer=optimizer), make_data()
    first, _ = first_rate(task, data, seed, BETA)
    function = loss_function(task.loss)
    changes = []
    for rate in (first, first / BETA):
        model = build_model(task, data, seed)
        inputs, targets = first_batch(task, data, seed)
        stepper = make_optimizer(optimizer, list(model.parameters()), rate)
        before = function(model(inputs), targets)
        before.backward()
        stepper.step()
        changes.append(float((function(model(inputs), targets) - before).detach()))
    assert changes[0] <= 0.0 < changes[1]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_pass_is_counted(optimizer, monkeypatch):
    """Steps as steps, and what found the first rate in thirds of one, its gradient as a whole."""
    task, data = make_task(optimizer=optimizer), make_data()
    Counted.passes = 0
    _, forwards = first_rate(task, data, 0, BETA)
    assert forwards == 3 + (Counted.passes - 1)  # one of them with its way back

    stepped = []
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    step = kind.step
    monkeypatch.setattr(
        kind, "step", lambda self, *a, **k: stepped.append(1) or step(self, *a, **k)
    )
    Counted.passes = Counted.looks = 0
    race = run_race(task, data, 0, RaceSettings(total_steps=80))
    assert race.steps == sum(p.steps for p in race.probes.values()) + race.forward_steps
    assert any(p.tails for p in race.probes.values())
    assert len(stepped) == 1 + sum(p.steps for p in race.probes.values())
    assert Counted.looks > 0
    forward_only = Counted.passes - len(stepped) + Counted.looks
    assert race.steps == len(stepped) + int(np.ceil(forward_only / 3))


def test_rungs_begin_at_the_same_weights_on_the_same_batches_and_a_race_is_repeatable():
    task, data = make_task(), make_data()
    race = run_race(task, data, 0, RaceSettings(total_steps=80))
    again = run_race(task, data, 0, RaceSettings(total_steps=80))
    assert len({probe.losses[0] for probe in race.probes.values()}) == 1
    assert (race.rung, race.rate, race.steps) == (again.rung, again.rate, again.steps)
    for rung, probe in race.probes.items():
        np.testing.assert_array_equal(probe.losses, again.probes[rung].losses)
    other = run_race(task, data, 1, RaceSettings(total_steps=80))
    assert other.probes[other.rung].losses[0] != race.probes[race.rung].losses[0]


def test_a_loss_in_another_unit_has_the_same_winner():
    data = make_data()
    here, there = (
        run_race(make_task(loss_scale=scale), data, 0, RaceSettings(total_steps=200))
        for scale in (1.0, 1024.0)
    )
    assert here.rung == there.rung
    assert there.rate == pytest.approx(here.rate / 1024.0, rel=1e-3)


def test_the_winner_trains_and_what_lies_above_the_bracket_does_not_do_better():
    race = run_race(make_task(), make_data(), 0, RaceSettings(total_steps=400))
    assert race.holds
    won = race.probes[race.rung]
    assert won.tails[max(won.tails)].end < 0.8 * won.losses[0]
    assert {race.rung - 1, race.rung + 1} <= race.probes.keys()
    assert race.rate == race.rate_of(race.rung)


# --- ends ------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Draws at random in each training pass."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_rung_goes_on_after_its_end_as_if_it_had_never_been_there(optimizer):
    """Weights, statistics, optimizer, batches and what is drawn at random."""
    task = make_task(optimizer=optimizer, model=lambda data: Dropping())
    held = make_data().validation
    curves = []
    for stops in ((25,), (6, 9, 25)):
        run = _Run(task, make_data(), 3, 0.05)
        for steps in stops:
            run.advance(steps)
            torch.rand(7)  # others draw too
            if steps < 25:
                run.finish(5, held)
        curves.append(run.probe())
    np.testing.assert_array_equal(curves[0].losses, curves[1].losses)
    assert set(curves[1].tails) == {6, 9}
    assert curves[1].steps == 25 + 2 * 5


def test_a_rung_meets_what_the_training_run_will_meet():
    task, data = make_task(model=lambda data: Dropping()), make_data()
    run = _Run(task, data, 3, 0.05)
    run.advance(7)
    run.finish(3, data.validation)
    run.advance(20)
    model = build_model(task, data, 3)
    seen = []

    class Note:
        def step(self, loss):
            seen.append(float(loss.detach()))
            return Decision("continue", 0.05)

    train(
        task,
        data,
        model=model,
        optimizer=make_optimizer("sgd", list(model.parameters()), 0.05),
        seed=3,
        controller=Note(),
    )
    np.testing.assert_array_equal(run.probe().losses, seen[:20])


def test_a_tail_falls_to_0_in_few_stairs_and_ends_where_plain_training_does():
    task, data = make_task(), make_data()
    run = _Run(task, data, 0, 0.1)
    run.advance(10)
    run.finish(50, data.validation)
    tail = run.probe().tails[10]
    assert tail.rates[0] == 0.1
    assert np.all(np.diff(tail.rates) <= 0.0)
    assert tail.rates[-1] == pytest.approx(0.1 * 2 / 50)
    assert len(np.unique(tail.rates)) <= 20
    model = build_model(task, data, 0)
    optimizer = make_optimizer("sgd", list(model.parameters()), 0.1)
    batches, function = Batches(data.train, 16, 0), loss_function(task.loss)
    drawn = [batch for _ in range(10) for batch in batches]
    for (inputs, targets), rate in zip(drawn, [0.1] * 10 + tail.rates.tolist(), strict=False):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        function(model(inputs), targets).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(
            model(data.validation.inputs), data.validation.targets, reduction="none"
        )
    np.testing.assert_allclose(tail.rows, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "binary_cross_entropy"])
def test_the_best_constant_output_is_that_of_the_training_rows(loss):
    generator = torch.Generator().manual_seed(1)
    kinds = {
        "cross_entropy": torch.randint(0, 3, (400,), generator=generator),
        "mse": torch.randn(400, 2, generator=generator),
        "binary_cross_entropy": (torch.rand(400, 1, generator=generator) < 0.2).float(),
    }
    split = Split(torch.zeros(400, 1), kinds[loss])
    task = make_task(loss=loss, metric="mse" if loss == "mse" else "accuracy", loss_scale=2.0)
    found = constant_loss(task, split, split)
    values = kinds[loss].double().numpy()
    if loss == "mse":
        expected = values.var(axis=0).mean()
    else:
        shares = np.unique(values, return_counts=True)[1] / 400
        expected = -(shares * np.log(shares)).sum()
    assert found == pytest.approx(2.0 * expected, rel=1e-3)


def test_labels_of_many_places_and_shares_of_classes_have_a_constant_output_too():
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 4, (30, 5, 5), generator=generator)
    labels[0, 0] = -100  # ignored, as torch does by default
    dense = Split(torch.zeros(30, 1), labels)
    assert 0.9 * np.log(4) < constant_loss(make_task(), dense, dense) < np.log(4) + 0.01
    soft = torch.softmax(torch.randn(30, 4, generator=generator), dim=1)
    split = Split(torch.zeros(30, 1), soft)
    mean = soft.mean(dim=0).double().numpy()
    assert constant_loss(make_task(), split, split) == pytest.approx(-(mean * np.log(mean)).sum())


# --- dead networks ---------------------------------------------------------------------------


class Silent(nn.Module):
    """All units are off at first; momentum moves the bias on, and they come back."""

    def __init__(self, back):
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.outer = nn.Linear(8, 3)
        with torch.no_grad():
            self.inner.bias.fill_(-100.0 if back else -1e6)

    def forward(self, x):
        return self.outer(torch.relu(self.inner(x)))


@pytest.mark.parametrize("back", [False, True])
def test_units_that_momentum_brings_back_are_not_dead(back):
    task = make_task(optimizer="momentum", model=lambda data: Silent(back))
    run = _Run(task, make_data(), 0, 0.1)
    moved = run._optimizer.state
    for parameter in (run._model.inner.weight, run._model.inner.bias):
        moved[parameter]["momentum_buffer"] = torch.full_like(parameter, -50.0)
    before = run._model.inner.bias.detach().clone()
    run.advance(1)
    probe = run.probe()
    assert probe.fate == ("alive" if back else "dead")
    assert probe.aside > 0
    assert probe.losses.size == 1
    # What was only tried is undone: one step was taken, at which nothing but momentum moves.
    assert float((run._model.inner.bias - before)[0].detach()) == pytest.approx(4.5, rel=0.02)


def relu_net(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias.fill_(bias)
    data = make_data().train
    nn.functional.cross_entropy(model(data.inputs), data.targets).backward()
    return model


def test_a_net_whose_units_are_all_off_gets_no_gradient():
    assert gets_no_gradient(relu_net(-1e3).parameters())
    assert not gets_no_gradient(relu_net(0.0).parameters())


def test_a_frozen_layer_and_a_model_without_matrices_are_no_dead_ones():
    model = relu_net(0.0)
    for parameter in model[0].parameters():
        parameter.grad = None
    assert not gets_no_gradient(model.parameters())
    assert not gets_no_gradient(nn.BatchNorm1d(3).parameters())
    assert not gets_no_gradient(nn.Linear(2, 2).parameters())  # no step was taken yet


def test_a_race_that_no_rung_survives_has_no_winner_but_in_name():
    class Off(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            with torch.no_grad():
                self[0].bias.fill_(-1e3)
                self[2].bias.requires_grad_(False)

    race = run_race(make_task(model=lambda data: Off()), make_data(), 0, RaceSettings(40))
    assert not race.holds
    assert {probe.fate for probe in race.probes.values()} == {"dead"}
