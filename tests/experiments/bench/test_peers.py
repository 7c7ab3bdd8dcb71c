"""Every peer in the common budget, from the common weights and batches."""

import pickle
from dataclasses import replace
from importlib import import_module
from math import ceil, isfinite, isnan

import pytest
import torch

from experiments.bench import peers
from experiments.bench.courses import descend, outcome
from experiments.bench.peers import DEFAULT_RATES, PEERS, load_package
from experiments.bench.sweeps import range_sweep, sweep_steps
from experiments.bench.tasks import make_task
from lrsearch.errors import MissingPackageError
from lrsearch.training.loop import (
    Evaluation,
    build_model,
    evaluate,
    make_optimizer,
    steps_per_epoch,
    train,
)
from lrsearch.training.task import OPTIMIZERS

WRAPPERS = [name for name, peer in PEERS.items() if not peer.own_update]


@pytest.fixture(scope="module")
def data():
    return make_task("digits-mlp", "none", "sgd").data(0)


def brief(optimizer="sgd", base="digits-mlp"):
    return replace(make_task(base, "none", optimizer), epochs=2)


def run(name, task, data, seed=0):
    package = PEERS[name].package
    if package is not None:
        try:
            load_package(package)
        except MissingPackageError as error:
            pytest.skip(str(error))
    return PEERS[name].run(task, data, seed)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_trains_spends_exactly_its_steps_and_repeats_itself(name, data):
    task = brief()
    budget = 2 * steps_per_epoch(task, data)
    found = run(name, task, data)
    assert not found.diverged, found.reason
    assert found.reason == ""
    assert all(isfinite(each) for each in (found.train_loss, found.val_loss))
    assert 0.0 <= found.val_metric <= 1.0
    assert 0.0 <= found.test_metric <= 1.0
    if name.startswith("fastai"):
        assert found.steps == budget + len(range_sweep(task, data, 0).losses)
    elif name == "torch-lr-finder":
        assert budget < found.steps <= budget + sweep_steps(task, data)
    elif name == "ReduceLROnPlateau":  # one look at validation, by forward passes
        assert found.steps == budget + ceil(ceil(len(data.validation) / 32) / 3)
    else:
        assert found.steps == budget
    assert isnan(found.lr) == (PEERS[name].own_update or name == "Mechanic")
    assert repr(run(name, task, data)) == repr(found)  # nan is nan


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_wraps_an_optimizer_wraps_each(name, optimizer, data):
    found = run(name, replace(brief(optimizer), epochs=1), data)
    assert not found.reason
    if name in ("default", "ReduceLROnPlateau"):
        assert found.lr == DEFAULT_RATES[optimizer]


def test_an_own_update_does_not_ask_for_the_tasks_optimizer(data):
    for name in ("Adadelta", "MoMo"):
        assert repr(run(name, brief("sgd"), data)) == repr(run(name, brief("adam"), data))


@pytest.mark.parametrize("base", ["digits-mlp", "digits-batchnorm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_peers_run_is_that_of_the_common_loop(base, optimizer, data):
    task = brief(optimizer, base)
    found = run("default", task, data, seed=3)
    model = build_model(task, data, 3)
    usual = make_optimizer(optimizer, list(model.parameters()), DEFAULT_RATES[optimizer])
    expected = train(task, data, model=model, optimizer=usual, seed=3)
    assert found.steps == expected.steps
    assert found.train_loss == expected.train.loss
    assert (found.val_loss, found.val_metric) == (
        expected.validation.loss,
        expected.validation.metric,
    )
    assert found.test_metric == expected.test.metric


def test_mechanic_keeps_what_the_optimizer_has_besides_its_rate(data):
    found = {optimizer: run("Mechanic", brief(optimizer), data) for optimizer in OPTIMIZERS}
    assert len({each.train_loss for each in found.values()}) == len(OPTIMIZERS)


def test_a_plateau_lowers_the_rate_once_validation_stands_still(monkeypatch):
    task = replace(make_task("wine-linear", "none", "sgd"), epochs=14)
    data = task.data(0)
    fixed = run("default", task, data)
    assert run("ReduceLROnPlateau", task, data).train_loss == fixed.train_loss  # it still falls
    monkeypatch.setattr(peers, "evaluate", lambda *arguments: Evaluation(1.0, 1.0))
    assert run("ReduceLROnPlateau", task, data).train_loss > fixed.train_loss


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFree"])
def test_schedule_free_is_evaluated_at_its_average(name, data):
    package = pytest.importorskip("schedulefree")
    task = brief()
    model = build_model(task, data, 0)
    optimizer = getattr(package, name)(model.parameters())
    optimizer.train()
    between = train(task, data, model=model, optimizer=optimizer, seed=0)
    optimizer.eval()
    found = run("Schedule-Free AdamW" if "Adam" in name else "Schedule-Free SGD", task, data)
    assert found.train_loss == evaluate(task, model, data.train).loss
    assert found.train_loss != between.train.loss


def test_schedule_free_pays_for_counting_batch_normalisation_anew(data):
    task = brief(base="digits-batchnorm")
    steps = steps_per_epoch(task, data)
    assert run("Schedule-Free SGD", task, data).steps == 2 * steps + ceil(steps / 3)


def test_dog_is_evaluated_at_its_average(data):
    package = pytest.importorskip("dog")
    task = brief()
    model = build_model(task, data, 0)
    optimizer = package.DoG(model.parameters())
    last = train(task, data, model=model, optimizer=optimizer, seed=0)
    found = run("DoG", task, data)
    assert found.steps == last.steps
    assert found.train_loss != last.train.loss
    # Some of the average's weight is on the last iterates, so it is not far off.
    assert found.train_loss == pytest.approx(last.train.loss, rel=0.5)


class Breaks(torch.optim.SGD):
    """Fails at its fourth step."""

    taken = 0

    def step(self, closure=None):
        self.taken += 1
        if self.taken == 4:
            raise AssertionError("G must be positive,\n got -1")
        return super().step(closure)


def test_a_peer_that_raises_has_diverged_with_the_weights_it_left(data):
    task = brief()
    model = build_model(task, data, 0)
    course = descend(task, data, 0, model, Breaks(model.parameters(), lr=0.1))
    found = outcome(task, data, model, course, lr=0.1)
    assert found.diverged
    assert found.reason == "AssertionError: G must be positive, got -1"
    assert found.steps == 4
    after_three = build_model(task, data, 0)
    usual = make_optimizer("sgd", list(after_three.parameters()), 0.1)

    taken = []

    def three(loss):
        taken.append(loss)
        if len(taken) <= 3:
            usual.step()

    descend(task, data, 0, after_three, usual, update=three)
    assert found.test_metric == evaluate(task, after_three, data.test).metric
    assert found.train_loss == evaluate(task, after_three, data.train).loss


def test_a_run_that_explodes_has_diverged_and_keeps_its_bill():
    task = make_task("diabetes-linear", "inputs x 100", "sgd")
    data = task.data(0)
    found = run("default", task, data)
    assert found.diverged
    assert found.reason == "diverged"
    assert 0 < found.steps < steps_per_epoch(task, data) * task.epochs
    assert not isfinite(found.test_metric)


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.package])
def test_a_missing_package_is_named_with_the_extra_that_has_it(name, data, monkeypatch):
    package = PEERS[name].package

    def absent(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(peers, "import_module", absent)
    with pytest.raises(MissingPackageError) as raised:
        PEERS[name].run(brief(), data, 0)
    assert str(raised.value) == (
        f"package {package!r} is not installed: pip install 'lrsearch[peers]'"
    )


def test_the_modules_are_those_of_the_packages():
    for name in {peer.package for peer in PEERS.values() if peer.package}:
        pytest.importorskip(peers._MODULES[name])
        assert load_package(name) is import_module(peers._MODULES[name])


def test_peers_can_be_sent_to_other_processes(data):
    copy = pickle.loads(pickle.dumps(PEERS))
    assert copy.keys() == PEERS.keys()
    assert copy["default"].run(brief(), data, 0) == run("default", brief(), data)
