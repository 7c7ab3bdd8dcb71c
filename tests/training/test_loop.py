"""The shared training loop: pairing, accounting, and the end of hopeless runs."""

import copy
import math

import pytest
import torch
from torch import nn

from lrsearch.controllers.exptest import Decision
from lrsearch.controllers.race import RaceSettings
from lrsearch.training.exptest import ExpTest
from lrsearch.training.loop import (
    SilentObserver,
    build_model,
    build_optimizer,
    evaluate,
    first_batch,
    loss_function,
    make_optimizer,
    steps_per_epoch,
    train,
)
from lrsearch.training.probes import run_race
from lrsearch.training.task import OPTIMIZERS, Split, TaskData, TrainingTask


def make_data(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def split(rows):
        inputs = torch.randn(rows, 4, generator=generator)
        return Split(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long())

    return TaskData(split(50), split(20), split(20), outputs=3)


DATA = make_data()


def make_task(**changes):
    options = {
        "data": make_data,
        "model": lambda data: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 3)),
        "epochs": 4,
        "batch_size": 16,
    }
    return TrainingTask(name="toy", **(options | changes))


def run(task, *, seed=3, lr=0.1, data=DATA, **options):
    model = build_model(task, data, seed=1)
    optimizer = make_optimizer(task.optimizer, list(model.parameters()), lr)
    outcome = train(task, data, model=model, optimizer=optimizer, seed=seed, **options)
    return model, outcome


class Batches:
    """A controller that only looks: which rows came, in which order."""

    def __init__(self):
        self.losses = []

    def step(self, loss):
        self.losses.append(float(loss.detach()))
        return Decision("continue", 0.1)


def test_equals_a_loop_written_by_hand():
    task = make_task(optimizer="momentum")
    model, outcome = run(task)

    torch.manual_seed(1)
    plain = task.model(DATA)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    order = torch.Generator().manual_seed(3)
    validation = math.nan
    for _ in range(4):
        permutation = torch.randperm(50, generator=order)
        for start in range(0, 50, 16):
            rows = permutation[start : start + 16]
            optimizer.zero_grad()
            output = plain(DATA.train.inputs[rows])
            nn.functional.cross_entropy(output, DATA.train.targets[rows]).backward()
            optimizer.step()
    plain.eval()
    with torch.no_grad():
        output = plain(DATA.validation.inputs)
        validation = float(nn.functional.cross_entropy(output, DATA.validation.targets))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert outcome.steps == 16
    assert outcome.validation.loss == pytest.approx(validation, rel=1e-6)
    assert (outcome.diverged, outcome.ended_early, outcome.lr) == (False, "", 0.1)


def test_the_order_of_batches_depends_on_the_seed_alone():
    """Nothing that a model draws may shift it: runs of one seed are paired."""
    frozen = make_task(model=lambda data: nn.Linear(4, 3))
    noisy = make_task(
        model=lambda data: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Dropout(0.0))
    )
    seen = []

    def losses(task, seed):
        """Losses of an untrained row counter: they name the rows of each batch."""
        controller = Batches()
        model = build_model(task, DATA, seed=1)
        hook = model.register_forward_pre_hook(
            lambda module, args: seen.append(args[0].sum().item()) if module.training else None
        )
        optimizer = make_optimizer("sgd", list(model.parameters()), 0.1)
        train(task, DATA, model=model, optimizer=optimizer, seed=seed, controller=controller)
        hook.remove()
        found, seen[:] = list(seen), []
        return found

    assert losses(frozen, 3) == losses(noisy, 3)
    assert losses(frozen, 3) != losses(frozen, 4)


def test_every_row_is_seen_once_in_an_epoch_and_the_last_batch_is_short():
    task = make_task(epochs=1, model=lambda data: nn.Linear(4, 3))
    model = build_model(task, DATA, seed=1)
    batches = []
    model.register_forward_pre_hook(
        lambda module, args: batches.append(args[0]) if module.training else None
    )
    optimizer = make_optimizer("sgd", list(model.parameters()), 0.1)
    train(task, DATA, model=model, optimizer=optimizer, seed=0)
    assert [len(b) for b in batches] == [16, 16, 16, 2]
    assert steps_per_epoch(task, DATA) == 4
    seen = torch.cat(batches)
    assert torch.equal(seen.sort(dim=0).values, DATA.train.inputs.sort(dim=0).values)
    assert not torch.equal(seen, DATA.train.inputs)


def test_full_batch_is_one_step_an_epoch():
    task = make_task(batch_size=None, epochs=5)
    assert steps_per_epoch(task, DATA) == 1
    assert run(task)[1].steps == 5
    assert run(make_task(batch_size=500, epochs=5))[1].steps == 5


class Noting(SilentObserver):
    def __init__(self):
        self.steps, self.windows, self.curves, self.checks = 0, [], [], []

    def stepped(self):
        self.steps += 1

    def judged(self, progress):
        self.windows.append(progress)

    def recorded(self, losses, start, lr):
        self.curves.append((start, len(losses), lr))

    def validated(self, validation, progress):
        self.checks.append((progress.step, validation.loss))


def test_an_observer_without_a_controller_sees_the_whole_curve_once():
    observer = Noting()
    _, outcome = run(make_task(epochs=50), observer=observer)
    assert observer.steps == outcome.steps == 200
    assert observer.windows == []
    ends = [start + size for start, size, _ in observer.curves]
    assert [start for start, _, _ in observer.curves] == [0, *ends[:-1]]
    assert ends[-1] == 200
    assert len(observer.checks) == 25  # every second epoch
    assert observer.checks[-1] == (200, outcome.validation.loss)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_without_a_controller_a_loss_that_is_not_finite_ends_the_run(bad):
    data = copy.deepcopy(DATA)
    task = make_task(model=lambda d: nn.Linear(4, 3), epochs=10)
    calls = []

    class Breaking(nn.Linear):
        def forward(self, x):
            if self.training:
                calls.append(1)
            output = super().forward(x)
            return output * bad if len(calls) == 7 and self.training else output

    broken = make_task(model=lambda d: Breaking(4, 3), epochs=10)
    _, outcome = run(broken, data=data)
    assert (outcome.steps, outcome.diverged, outcome.ended_early) == (7, True, "diverged")
    assert run(task)[1].steps == 40


def test_a_controller_that_says_stop_ends_the_run():
    class Stopping:
        def __init__(self):
            self.count = 0

        def step(self, loss):
            self.count += 1
            return Decision("stop" if self.count == 6 else "continue", 0.1, None, "enough")

    observer = Noting()
    _, outcome = run(make_task(), controller=Stopping(), observer=observer)
    assert (outcome.steps, outcome.ended_early, outcome.diverged) == (6, "enough", False)
    assert observer.curves == []


def test_exptest_drives_the_loop_to_the_budgets_end():
    task = make_task(epochs=100)
    model = build_model(task, DATA, seed=1)
    optimizer = make_optimizer("sgd", list(model.parameters()), 0.2)
    controller = ExpTest(optimizer, model=model, total_steps=400)
    observer = Noting()
    outcome = train(
        task,
        DATA,
        model=model,
        optimizer=optimizer,
        seed=0,
        controller=controller,
        observer=observer,
    )
    assert (outcome.steps, outcome.ended_early) == (400, "")
    assert len(observer.windows) == len(controller.windows)
    assert [p.step for p in observer.windows] == [w.stop for w in controller.windows]


def test_evaluation_is_the_mean_over_rows_in_evaluation_mode(monkeypatch):
    task = make_task()
    model = build_model(task, DATA, seed=1)
    model.train()
    whole = evaluate(task, model, DATA.train)
    monkeypatch.setattr("lrsearch.training.loop._EVALUATION_ROWS", 7)
    parts = evaluate(task, model, DATA.train)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.metric == pytest.approx(whole.metric, rel=1e-6)
    assert model.training
    model.eval()
    guessed = model(DATA.train.inputs).argmax(dim=1)
    assert whole.metric == pytest.approx(float((guessed == DATA.train.targets).double().mean()))


def test_losses_are_torchs_own():
    output, target = torch.tensor([[0.3], [-2.0]]), torch.tensor([1.0, 0.0])
    ours = loss_function("binary_cross_entropy")(output, target)
    assert float(ours) == pytest.approx(
        (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(-2.0))) / 2, rel=1e-6
    )
    mean = loss_function("mse")(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 0.0]))
    assert float(mean) == 5.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_a_task_can_be_made(name):
    optimizer = make_optimizer(name, [nn.Parameter(torch.ones(1))], 0.2)
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert optimizer.param_groups[0].get("momentum", 0.0) == (0.9 if name == "momentum" else 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_task_without_weight_decay_has_torchs_own(name):
    optimizer = build_optimizer(make_task(optimizer=name), nn.Linear(2, 1), 0.2)
    assert optimizer.param_groups[0]["weight_decay"] == (0.01 if name == "adamw" else 0.0)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_tasks_weight_decay_is_its_optimizers(name, decay):
    optimizer = build_optimizer(make_task(optimizer=name, weight_decay=decay), nn.Linear(2, 1), 0.2)
    assert optimizer.param_groups[0]["weight_decay"] == decay


def test_a_race_is_run_with_the_tasks_weight_decay():
    settings = RaceSettings(total_steps=16)
    plain, decayed = (
        run_race(make_task(weight_decay=decay), DATA, 1, settings) for decay in (0.0, 0.5)
    )
    shared = plain.probes.keys() & decayed.probes.keys()
    assert shared
    assert all(plain.probes[rung].losses[-1] != decayed.probes[rung].losses[-1] for rung in shared)


@pytest.mark.parametrize(
    ("decay", "error"), [(-0.1, ValueError), (math.inf, ValueError), ("0.1", TypeError)]
)
def test_a_weight_decay_that_is_none_is_refused_in_one_line(decay, error):
    with pytest.raises(error, match=r"weight_decay must be a .*number.*got") as info:
        make_task(weight_decay=decay)
    assert "\n" not in str(info.value)


def test_an_observer_may_renew_the_rate_after_each_epoch_but_the_last():
    task = make_task(epochs=3)
    model = build_model(task, DATA, 0)
    optimizer = make_optimizer("sgd", list(model.parameters()), 0.4)

    class Halving(Noting):
        def epoch_ended(self):
            optimizer.param_groups[0]["lr"] /= 2.0

    watch = Halving()
    outcome = train(task, DATA, model=model, optimizer=optimizer, seed=0, observer=watch)
    # Each stretch of losses has the rate that gave it.
    assert watch.curves == [(0, 4, 0.4), (4, 4, 0.2), (8, 4, 0.1)]
    assert outcome.lr == 0.1


def test_losses_are_told_in_stretches_of_one_rate_between_looks_at_validation():
    task = make_task(epochs=60)  # a look at every third epoch
    model = build_model(task, DATA, 0)
    optimizer = make_optimizer("sgd", list(model.parameters()), 0.1)

    class Once(Noting):
        epochs = 0

        def epoch_ended(self):
            self.epochs += 1
            if self.epochs == 2:
                optimizer.param_groups[0]["lr"] = 0.05

    watch = Once()
    train(task, DATA, model=model, optimizer=optimizer, seed=0, observer=watch)
    assert watch.curves[:3] == [(0, 8, 0.1), (8, 4, 0.05), (12, 12, 0.05)]
    assert watch.epochs == 59


@pytest.mark.parametrize(("every", "looks"), [(1, 6), (4, 2), (None, 6)])
def test_validation_is_looked_at_as_often_as_asked(every, looks):
    observer = Noting()
    run(make_task(epochs=6), observer=observer, check_every=every)
    assert len(observer.checks) == looks


def test_the_first_batch_is_the_one_that_training_sees_first():
    task, seen = make_task(epochs=1), []
    model = build_model(task, DATA, 0)
    model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0]) if module.training else None
    )
    optimizer = make_optimizer("sgd", list(model.parameters()), 0.1)
    train(task, DATA, model=model, optimizer=optimizer, seed=7)
    inputs, targets = first_batch(task, DATA, 7)
    assert torch.equal(inputs, seen[0])
    assert len(inputs) == len(targets) == 16
    whole, _ = first_batch(make_task(batch_size=None), DATA, 7)
    assert torch.equal(whole, DATA.train.inputs)
