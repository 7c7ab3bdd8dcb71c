"""Shifts do what they say, to training alone where they should, and by the seed."""

import pickle
from dataclasses import replace

import pytest
import torch

from experiments.bench.tasks import BASES, SHIFTS, make_task, shifts_of
from lrsearch.errors import InvalidArgumentError
from lrsearch.tasks.datasets import DATASETS, load_dataset
from lrsearch.training.loop import build_model, steps_per_epoch

EMBEDDED = [name for name, base in BASES.items() if base.embedded]
CLASSES = ("digits-linear", "breast-cancer-linear", "wine-linear")


def parts(data):
    return data.train, data.validation, data.test


def shifted(base, shift, seed=0):
    return make_task(base, shift).data(seed)


@pytest.mark.parametrize("base", EMBEDDED)
def test_without_a_shift_the_data_are_the_data_sets(base):
    data, plain = shifted(base, "none", 2), load_dataset(BASES[base].dataset, 2)
    for part, expected in zip(parts(data), parts(plain), strict=True):
        assert torch.equal(part.inputs, expected.inputs)
        assert torch.equal(part.targets, expected.targets)


def test_raw_inputs_are_in_the_datas_own_units():
    digits = shifted("digits-mlp", "raw inputs").train.inputs
    assert digits.min() == 0.0
    assert digits.max() == 16.0
    assert torch.equal(digits, digits.round())
    diabetes = shifted("diabetes-linear", "raw inputs")
    assert 19 <= diabetes.train.inputs[:, 0].min() < diabetes.train.inputs[:, 0].max() <= 79  # age
    assert set(diabetes.train.inputs[:, 1].tolist()) == {1.0, 2.0}  # sex
    assert float(diabetes.train.targets.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("shift", "factor"), [("inputs x 0.01", 0.01), ("inputs x 100", 100.0)])
def test_inputs_are_scaled_in_every_split(shift, factor):
    data, plain = shifted("wine-mlp", shift), shifted("wine-mlp", "none")
    for part, expected in zip(parts(data), parts(plain), strict=True):
        assert torch.equal(part.inputs, expected.inputs * factor)
        assert torch.equal(part.targets, expected.targets)


def test_label_noise_draws_a_share_of_the_training_labels_anew():
    data, plain = shifted("digits-mlp", "label noise"), shifted("digits-mlp", "none")
    wrong = (data.train.targets != plain.train.targets).double().mean()
    # 0.3 are drawn from 10 classes: 0.27 turn out wrong; five binomial deviations.
    rows = len(plain.train)
    assert float(wrong) == pytest.approx(0.27, abs=5 * (0.27 * 0.73 / rows) ** 0.5)
    assert torch.equal(data.validation.targets, plain.validation.targets)
    assert torch.equal(data.test.targets, plain.test.targets)
    assert torch.equal(data.train.inputs, plain.train.inputs)


def test_noise_of_values_has_that_share_of_their_deviation():
    data, plain = shifted("diabetes-mlp", "label noise"), shifted("diabetes-mlp", "none")
    noise = data.train.targets - plain.train.targets
    rows = len(noise)
    assert float(noise.std()) == pytest.approx(0.3, abs=5 * 0.3 / (2 * rows) ** 0.5)
    assert float(noise.mean()) == pytest.approx(0.0, abs=5 * 0.3 / rows**0.5)
    assert torch.equal(data.test.targets, plain.test.targets)


@pytest.mark.parametrize("base", CLASSES)
def test_the_rarest_class_has_a_tenth_of_the_rows(base):
    data, plain = shifted(base, "class imbalance"), shifted(base, "none")
    left = torch.bincount(data.train.targets, minlength=data.outputs).double()
    shares = 0.1 ** (torch.arange(data.outputs) / (data.outputs - 1))
    assert ((left - shares * left[0]).abs() <= 0.5).all()  # whole rows
    # Little is lost besides: the first class has nearly as many rows as the smallest had.
    assert left[0] >= torch.bincount(plain.train.targets).min() - 4
    assert torch.equal(data.test.targets, plain.test.targets)
    known = {tuple(row) for row in plain.train.inputs.tolist()}
    assert {tuple(row) for row in data.train.inputs.tolist()} < known


@pytest.mark.parametrize("base", [*CLASSES, "diabetes-linear"])
def test_seeds_of_a_cell_have_data_of_one_size(base):
    """A bank stacks the batches of its seeds."""
    for shift in shifts_of(base):
        task = make_task(base, shift)
        sizes = {tuple(len(part) for part in parts(task.data(seed))) for seed in range(6)}
        assert len(sizes) == 1, shift


@pytest.mark.parametrize(("shift", "factor"), [("weights x 3", 3.0), ("weights x 0.1", 0.1)])
@pytest.mark.parametrize("base", ["digits-batchnorm", "digits-cnn"])
def test_first_weights_are_scaled_and_biases_and_gains_are_not(base, shift, factor):
    task, plain = make_task(base, shift), make_task(base, "none")
    data = plain.data(0)
    models = build_model(task, data, 4), build_model(plain, data, 4)
    scaled = 0
    for parameter, first in zip(*(each.parameters() for each in models), strict=True):
        matrix = first.ndim > 1
        assert torch.equal(parameter, first * factor if matrix else first)
        scaled += matrix
    assert scaled == 3


def test_budgets_and_batches_are_the_shifts():
    plain = make_task("digits-mlp", "none")
    data = plain.data(0)

    def steps(shift):
        task = make_task("digits-mlp", shift)
        return task.batch_size, steps_per_epoch(task, data) * task.epochs

    assert steps("none") == (32, 340)
    assert steps("short budget") == (32, 68)
    assert steps("batch 8") == (8, 135 * 5)
    assert steps("batch 256") == (256, 5 * 20)


def test_the_scaled_loss_is_the_tasks():
    assert make_task("wine-mlp", "loss x 100").loss_scale == 100.0
    assert make_task("wine-mlp", "none").loss_scale == 1.0


@pytest.mark.parametrize("base", EMBEDDED)
def test_every_task_can_be_sent_to_another_process(base):
    for shift in ("none", "label noise", "weights x 3"):
        task = make_task(base, shift, "adam")
        copy = pickle.loads(pickle.dumps(task))
        assert (copy.name, copy.optimizer, copy.epochs) == (task.name, "adam", task.epochs)
        for part, expected in zip(parts(copy.data(1)), parts(task.data(1)), strict=True):
            assert torch.equal(part.inputs, expected.inputs)
            assert torch.equal(part.targets, expected.targets)
        data = task.data(1)
        models = build_model(copy, data, 1), build_model(task, data, 1)
        weights = zip(*(each.parameters() for each in models), strict=True)
        assert all(torch.equal(*pair) for pair in weights)


@pytest.mark.parametrize("base", EMBEDDED)
def test_every_model_answers_with_the_datas_outputs(base):
    task = make_task(base, "none")
    data = task.data(0)
    assert build_model(task, data, 0)(data.train.inputs[:5]).shape == (5, data.outputs)


def test_large_data_are_cut_by_the_seed(monkeypatch):
    """MNIST and housing may not be at hand: digits stand in."""
    cut = replace(BASES["digits-linear"], rows=400)
    monkeypatch.setitem(BASES, "digits-linear", cut)
    data, again, other = (shifted("digits-linear", "none", seed) for seed in (0, 0, 1))
    assert [len(part) for part in parts(data)] == [400, 100, 360]
    assert torch.equal(data.train.inputs, again.train.inputs)
    assert not torch.equal(data.train.inputs, other.train.inputs)
    whole = load_dataset("digits", 0).train.inputs
    assert {tuple(row) for row in data.train.inputs.tolist()} < {
        tuple(row) for row in whole.tolist()
    }
    rare = make_task("digits-linear", "class imbalance")
    assert {len(rare.data(seed).train) for seed in range(4)} == {400}


def test_values_have_no_rare_class():
    assert "class imbalance" not in shifts_of("diabetes-mlp")
    assert set(shifts_of("digits-mlp")) == set(SHIFTS)
    with pytest.raises(InvalidArgumentError, match=r"shift must be one of .* with diabetes-mlp"):
        make_task("diabetes-mlp", "class imbalance")
    with pytest.raises(InvalidArgumentError, match="base must be one of"):
        make_task("digits", "none")
    with pytest.raises(InvalidArgumentError, match="shift must be one of"):
        make_task("digits-mlp", "noise")


def test_the_panel_has_twelve_tasks_that_need_no_download():
    assert len(EMBEDDED) >= 12
    assert {BASES[name].dataset for name in EMBEDDED} == set(DATASETS) - {"mnist", "housing"}
