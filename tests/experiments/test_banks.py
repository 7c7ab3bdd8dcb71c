"""Banks against torch's autograd and optimizers, on the same networks one by one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from experiments.banks import LOSSES, Bank
from experiments.exptest.training import OPTIMIZERS, FixedRates, train

TORCH_LOSS = {"cross_entropy": cross_entropy, "mse": mse_loss}
# All in 64 bits. Sums here have at most 32 terms of order 1, so rounding stays below
# 32 * 2.2e-16 * (layers + 1) < 1e-13 of the largest term; a missing or doubled term is of order 1.
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}


def network(widths, seed):
    torch.manual_seed(seed)
    layers = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def batch(loss, rows, features, outputs, seed=0):
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, features, generator=draw, dtype=torch.float64)
    if loss == "cross_entropy":
        return inputs, torch.randint(outputs, (rows,), generator=draw)
    return inputs, torch.randn(rows, outputs, generator=draw, dtype=torch.float64)


def autograd(model, loss, inputs, targets):
    """Loss and gradients, layer by layer: weight, bias."""
    model.zero_grad()
    value = TORCH_LOSS[loss](model(inputs), targets)
    value.backward()
    return value.detach(), [parameter.grad for parameter in model.parameters()]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.reshape(theirs.shape), theirs, **ROUNDING)


# --- losses and gradients --------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    loss=st.sampled_from(LOSSES),
    runs=st.integers(1, 4),
    hidden=st.lists(st.integers(1, 8), max_size=3),
    rows=st.integers(1, 16),
    features=st.integers(1, 8),
    outputs=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_losses_and_gradients_are_those_of_each_network_alone(
    loss, runs, hidden, rows, features, outputs, seed
):
    models = [network((features, *hidden, outputs), seed + run) for run in range(runs)]
    inputs, targets = batch(loss, rows, features, outputs, seed)
    bank = Bank(models, loss=loss)
    found = bank.backward(inputs, targets)
    assert found.shape == (runs,)
    for run, model in enumerate(models):
        value, gradients = autograd(model, loss, inputs, targets)
        torch.testing.assert_close(found[run], value, **ROUNDING)
        assert_same([parameter.grad for parameter in bank.parameters(run)], gradients)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_second_batch_overwrites_the_gradients_of_the_first(loss):
    model = network((3, 4, 2), 0)
    bank = Bank([model], loss=loss)
    bank.backward(*batch(loss, 5, 3, 2, seed=1))
    second = batch(loss, 7, 3, 2, seed=2)
    bank.backward(*second)
    assert_same(
        [parameter.grad for parameter in bank.parameters(0)], autograd(model, loss, *second)[1]
    )


def test_a_lone_linear_layer_is_a_network_too():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    inputs, targets = batch("cross_entropy", 9, 4, 3)
    bank = Bank([model], loss="cross_entropy")
    value, gradients = autograd(model, "cross_entropy", inputs, targets)
    torch.testing.assert_close(bank.backward(inputs, targets)[0], value, **ROUNDING)
    assert_same([parameter.grad for parameter in bank.parameters(0)], gradients)


def test_a_unit_at_exactly_zero_passes_no_gradient_as_in_torch():
    model = network((2, 3, 3, 1), 0)
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[0].bias[0] = 0.0  # one dead unit below,
        model[2].weight[1] = 0.0
        model[2].bias[1] = 0.0  # and one above
    inputs, targets = batch("mse", 6, 2, 1)
    assert torch.all(model[0](inputs)[:, 0] == 0.0)
    bank = Bank([model], loss="mse")
    bank.backward(inputs, targets)
    found = [parameter.grad for parameter in bank.parameters(0)]
    assert_same(found, autograd(model, "mse", inputs, targets)[1])
    assert torch.all(found[0][0] == 0.0)
    assert torch.all(found[2][1] == 0.0)
    assert torch.any(found[0] != 0.0)


def test_numbers_of_32_bits_stay_numbers_of_32_bits():
    model = network((3, 4, 2), 0).float()
    inputs, targets = batch("mse", 5, 3, 2)
    bank = Bank([model], loss="mse")
    assert bank.backward(inputs.float(), targets.float()).dtype == torch.float32
    assert {stack.dtype for stack in bank.stacks} == {torch.float32}
    assert {parameter.grad.dtype for parameter in bank.parameters(0)} == {torch.float32}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_alone_touch_no_gradient(loss):
    models = [network((3, 4, 2), seed) for seed in range(3)]
    bank = Bank(models, loss=loss)
    first, second = batch(loss, 5, 3, 2, seed=1), batch(loss, 7, 3, 2, seed=2)
    bank.backward(*first)
    before = [[p.grad.clone() for p in bank.parameters(run)] for run in range(3)]
    expected = torch.stack([autograd(model, loss, *second)[0] for model in models])
    torch.testing.assert_close(bank.losses(*second), expected, **ROUNDING)
    for run in range(3):
        for kept, parameter in zip(before[run], bank.parameters(run), strict=True):
            assert torch.equal(kept, parameter.grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_inputs_and_targets_are_left_as_they_came(loss):
    inputs, targets = batch(loss, 5, 3, 2)
    kept = inputs.clone(), targets.clone()
    bank = Bank([network((3, 4, 2), 0)], loss=loss)
    bank.backward(inputs, targets)
    bank.losses(inputs, targets)
    assert torch.equal(inputs, kept[0])
    assert torch.equal(targets, kept[1])


def test_accuracy_counts_the_rows_whose_largest_output_is_their_class():
    models = [network((4, 6, 3), seed) for seed in range(5)]
    inputs, targets = batch("cross_entropy", 40, 4, 3)
    found = Bank(models, loss="cross_entropy").accuracy(inputs, targets)
    for run, model in enumerate(models):
        right = sum(
            max(range(3), key=row.__getitem__) == int(target)
            for row, target in zip(model(inputs).tolist(), targets, strict=True)
        )
        assert found[run].item() == right / 40
    assert len(set(found.tolist())) > 1


# --- trained side by side --------------------------------------------------------------------

ALONE = {
    "Adam": torch.optim.Adam,
    "SGD": torch.optim.SGD,
    "SGD w/ Mom.": lambda parameters, **rate: torch.optim.SGD(parameters, momentum=0.9, **rate),
    "RMSprop": torch.optim.RMSprop,
    "Adadelta": torch.optim.Adadelta,
}
RATES = {"RMSprop": (0.003, 0.001), "Adadelta": (None, 0.5)}
STEPS = 50


def trained_alone(model, method, rate, batches):
    """Losses of the same training by plain torch, and the length of its last step."""
    given = {} if rate is None else {"lr": rate}
    optimizer = ALONE[method](model.parameters(), foreach=False, **given)
    losses = []
    for inputs, targets in batches:
        before = [parameter.detach().clone() for parameter in model.parameters()]
        losses.append(autograd(model, "cross_entropy", inputs, targets)[0])
        optimizer.step()
    moved = [(p.detach() - q).norm() for p, q in zip(model.parameters(), before, strict=True)]
    return torch.stack(losses), min(moved)


def test_every_optimizer_of_the_tables_has_a_reference_here():
    assert ALONE.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("method", OPTIMIZERS)
def test_runs_of_a_bank_follow_the_same_networks_trained_alone(method):
    models = [network((4, 8, 3), seed) for seed in (0, 1)]
    rates = RATES.get(method, (0.05, 0.01))
    batches = [batch("cross_entropy", 16, 4, 3, seed=step) for step in range(STEPS)]
    bank = Bank(models, loss="cross_entropy")
    driver = FixedRates(method, [(rate, bank.parameters(n)) for n, rate in enumerate(rates)])
    curves = train(bank, [driver], iter(batches), steps=STEPS)
    assert curves.shape == (2, STEPS)
    for run, (model, rate) in enumerate(zip(models, rates, strict=True)):
        losses, last_step = trained_alone(model, method, rate, batches)
        # Another default, or one step more or less, is far beyond the tolerance.
        assert last_step > 1e-4
        for mine, theirs in zip(bank.parameters(run), model.parameters(), strict=True):
            torch.testing.assert_close(
                mine.reshape(theirs.shape), theirs, rtol=1e-8, atol=1e-8, msg=method
            )
        # Curves are kept in 32 bits: half a unit of their last place is 6e-8.
        torch.testing.assert_close(
            torch.from_numpy(curves[run]).double(), losses, rtol=6e-8, atol=0.0
        )


def test_a_training_ends_when_it_is_told_to():
    bank = Bank([network((4, 3), 0)], loss="cross_entropy")
    driver = FixedRates("SGD", [(0.1, bank.parameters(0))])
    batches = [batch("cross_entropy", 4, 4, 3, seed=step) for step in range(9)]
    seen = []
    curves = train(
        bank, [driver], iter(batches), steps=9, after=lambda step: seen.append(step) or step == 3
    )
    assert seen == [0, 1, 2, 3]
    assert curves.shape == (1, 4)


# --- one run's weights -----------------------------------------------------------------------


def test_models_are_copied_and_left_alone():
    model = network((3, 4, 2), 0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    bank = Bank([model, model], loss="mse")
    bank.backward(*batch("mse", 5, 3, 2))
    for stack in bank.stacks:
        stack.add_(1.0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert len(bank) == 2


def test_load_overwrites_one_run_and_its_driver_goes_on_from_there():
    models = [network((3, 4, 2), seed) for seed in range(2)]
    bank = Bank(models, loss="mse")
    driver = FixedRates("SGD", [(0.1, bank.parameters(1))])
    inputs, targets = batch("mse", 5, 3, 2)
    new = network((3, 4, 2), 7)
    bank.load(1, new)
    expected = [autograd(model, "mse", inputs, targets)[0] for model in (models[0], new)]
    torch.testing.assert_close(bank.losses(inputs, targets), torch.stack(expected), **ROUNDING)
    driver.step(bank.backward(inputs, targets).unbind())
    gradients = autograd(new, "mse", inputs, targets)[1]
    expected_weights = [
        p.detach() - 0.1 * g for p, g in zip(new.parameters(), gradients, strict=True)
    ]
    assert_same([parameter.detach() for parameter in bank.parameters(1)], expected_weights)
    assert_same(
        [parameter.detach() for parameter in bank.parameters(0)],
        [parameter.detach() for parameter in models[0].parameters()],
    )


@pytest.mark.parametrize("widths", [(3, 5, 2), (3, 2), (4, 3, 2), (3, 4, 4, 2)])
def test_a_model_of_another_shape_is_not_loaded_in_part(widths):
    bank = Bank([network((3, 4, 2), 0)], loss="mse")
    before = [stack.clone() for stack in bank.stacks]
    with pytest.raises(ValueError, match="shape"):
        bank.load(0, network(widths, 1))
    assert all(torch.equal(p, q) for p, q in zip(bank.stacks, before, strict=True))


# --- what is no bank -------------------------------------------------------------------------


class Doubled(nn.Module):
    """Looks like a network of linear layers from its children; its forward pass is another."""

    def __init__(self):
        super().__init__()
        self.first, self.between, self.last = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)

    def forward(self, inputs):
        return 2.0 * self.last(self.between(self.first(inputs)))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(2, 3), nn.ReLU()),
        nn.Sequential(nn.ReLU(), nn.Linear(2, 3)),
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)),
        nn.Linear(2, 3, bias=False),
        nn.Sequential(),
        nn.Conv1d(1, 1, 1),
        Doubled(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_layers_are_refused(model):
    with pytest.raises(TypeError, match="models must be"):
        Bank([model], loss="mse")


@pytest.mark.parametrize("widths", [[(3, 4, 2), (3, 5, 2)], [(3, 4, 2), (3, 2)], []])
def test_models_of_different_shapes_or_none_are_refused(widths):
    with pytest.raises(ValueError, match="same shape"):
        Bank([network(each, 0) for each in widths], loss="mse")


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="'hinge'"):
        Bank([nn.Linear(2, 3)], loss="hinge")
