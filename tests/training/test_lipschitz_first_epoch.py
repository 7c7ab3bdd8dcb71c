"""The first epoch of LipschitzLR: the papers' rules, and an estimate from one batch."""

import copy
from math import sqrt

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lrsearch import LipschitzLR

ROWS = 16
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=7.0),
    "momentum": lambda p: torch.optim.SGD(p, lr=7.0, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=7.0),
    "adam": lambda p: torch.optim.Adam(p, lr=7.0),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, 6, generator=generator) for _ in range(count)]


def backward(model, inputs):
    cross_entropy(model(inputs), inputs[:, :3].argmax(1)).backward()


def one_step(model, optimizer, inputs):
    optimizer.zero_grad()
    backward(model, inputs)
    optimizer.step()


def penultimate(model, inputs):
    with torch.no_grad():
        return model[1](model[0](inputs))


def bound_of(activations):
    return 2 / 3 * activations.norm().item() / ROWS


@pytest.mark.parametrize("rule", ["batch", "papers"])
def test_the_first_batch_sets_the_rate_of_the_first_step_of_plain_descent(rule):
    model = network()
    twin = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    first, second = batches(2)
    expected = 1 / bound_of(penultimate(model, first))
    with LipschitzLR(optimizer, model, first_epoch=rule) as controller:
        assert controller.lr == 7.0  # nothing is known before a batch was seen
        one_step(model, optimizer, first)
        assert controller.lr == controller.last.lr == pytest.approx(expected, rel=1e-6)
        assert (controller.last.epoch, controller.last.reason) == (-1, "")
        by_hand = torch.optim.SGD(twin.parameters(), lr=controller.lr)
        one_step(twin, by_hand, first)
        for moved, other in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(moved, other)
        # Once only: the next batch moves nothing before step(), which counts both.
        larger = max(bound_of(penultimate(network(), first)), bound_of(penultimate(model, second)))
        one_step(model, optimizer, second)
        assert controller.lr == pytest.approx(expected, rel=1e-6)
        last = controller.step()
        assert last.lr == pytest.approx(1 / larger, rel=1e-6)
        assert last.epoch == 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("momentum", 0.1 * 0.1), ("rmsprop", 1e-3), ("adam", 1e-3 + 1e-8)],
)
def test_the_papers_rates_of_the_first_epoch(kind, expected):
    """AdaMo's x = 0.1 is 0.01 in torch's velocity; sqrt(1e-6) / 1 for Auto-Adam."""
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    controller = LipschitzLR(optimizer, model, first_epoch="papers")
    assert controller.lr == pytest.approx(expected, rel=1e-12)
    one_step(model, optimizer, batches(1)[0])
    assert controller.lr == pytest.approx(expected, rel=1e-12)
    assert controller.last is None


def test_the_papers_starts_enter_the_means():
    inputs = batches(1)[0]
    found = {}
    for kind in ("momentum", "rmsprop", "adam"):
        model = network()
        optimizer = OPTIMIZERS[kind](model.parameters())
        controller = LipschitzLR(optimizer, model, first_epoch="papers")
        L = bound_of(penultimate(model, inputs))
        model(inputs)
        found[kind] = controller.step().lr
    assert found["momentum"] == pytest.approx(0.1 / (0.9 * 0.1 + 0.1 * L), rel=1e-6)
    assert found["rmsprop"] == pytest.approx(sqrt(0.01), rel=1e-6)
    root = sqrt(0.999e-6 + 0.001 * L**2) + 1e-8
    assert found["adam"] == pytest.approx(root / (0.9 + 0.1 * L), rel=1e-6)


def test_adamos_x_is_the_users():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=7.0, momentum=0.9, dampening=0.9)
    controller = LipschitzLR(optimizer, model, first_epoch="papers", start=0.5)
    assert controller.lr == pytest.approx(0.5, rel=1e-12)  # the papers' velocity


def test_the_estimate_from_a_batch_is_forgotten_by_the_means():
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    controller = LipschitzLR(optimizer, model, first_epoch="batch")
    first, second = batches(2)
    L = bound_of(penultimate(model, first))
    one_step(model, optimizer, first)
    assert controller.lr == pytest.approx(0.1 / L, rel=1e-6)
    larger = max(L, bound_of(penultimate(model, second)))
    one_step(model, optimizer, second)
    assert controller.step().lr == pytest.approx(0.1 / larger, rel=1e-6)


def test_without_bias_correction_adams_means_grow_from_zero():
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    controller = LipschitzLR(optimizer, model, first_epoch="batch", bias_correction=False)
    first = batches(1)[0]
    L = bound_of(penultimate(model, first))
    one_step(model, optimizer, first)
    assert controller.lr == pytest.approx((sqrt(0.001 * L**2) + 1e-8) / (0.1 * L), rel=1e-6)


def test_accumulated_batches_count_together():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    controller = LipschitzLR(optimizer, model, first_epoch="batch")
    micro = batches(3)
    for inputs in micro:
        backward(model, inputs)
    largest = max(bound_of(penultimate(model, inputs)) for inputs in micro)
    optimizer.step()
    assert controller.lr == pytest.approx(1 / largest, rel=1e-6)


def test_a_closure_is_waited_for():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    controller = LipschitzLR(optimizer, model, first_epoch="batch")
    optimizer.param_groups[0]["lr"] = 1e-3
    inputs = batches(1)[0]

    def closure():
        optimizer.zero_grad()
        backward(model, inputs)

    optimizer.step(closure)  # the hook runs before the closure has seen a batch
    assert controller.lr == 1e-3
    # What the first step's own pass showed, before it moved the weights.
    expected = 1 / bound_of(penultimate(network(), inputs))
    optimizer.step(closure)
    assert controller.lr == pytest.approx(expected, rel=1e-6)


def test_a_dead_first_batch_leaves_the_rate_and_says_so():
    model = network()
    nn.init.constant_(model[0].bias, -100.0)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    controller = LipschitzLR(optimizer, model, first_epoch="batch")
    one_step(model, optimizer, batches(1)[0])
    assert controller.lr == 7.0
    assert "inputs are all zero" in controller.last.reason


def test_closing_before_the_first_step_leaves_no_hook():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    LipschitzLR(optimizer, model, first_epoch="batch").close()
    assert not optimizer._optimizer_step_pre_hooks
    one_step(model, optimizer, batches(1)[0])
    assert optimizer.param_groups[0]["lr"] == 7.0


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("rule", ["batch", "papers"])
def test_a_first_epoch_goes_on_exactly_where_it_was_saved(kind, rule):
    """Saved after the first step: the estimate is not made again, nor the papers' rate set."""
    first, second, third = batches(3)
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    controller = LipschitzLR(optimizer, model, first_epoch=rule)
    one_step(model, optimizer, first)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), controller.state_dict()))

    again = network()
    again.load_state_dict(saved[0])
    other = OPTIMIZERS[kind](again.parameters())
    other.load_state_dict(saved[1])
    resumed = LipschitzLR(other, again, first_epoch=rule)
    resumed.load_state_dict(saved[2])
    assert resumed.lr == controller.lr
    for inputs in (second, third):
        one_step(model, optimizer, inputs)
        one_step(again, other, inputs)
        assert resumed.lr == controller.lr
    assert resumed.step() == controller.step()
    for moved, same in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(moved, same)


def test_a_state_from_before_the_first_step_still_waits_for_the_batch():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    fresh = LipschitzLR(optimizer, model, first_epoch="batch")
    state = fresh.state_dict()
    fresh.close()
    resumed = LipschitzLR(optimizer, model, first_epoch="batch")
    resumed.load_state_dict(state)
    inputs = batches(1)[0]
    expected = 1 / bound_of(penultimate(model, inputs))
    one_step(model, optimizer, inputs)
    assert resumed.lr == pytest.approx(expected, rel=1e-6)


def test_hooks_of_others_on_the_optimizer_are_left_to_run():
    """torch goes through all of them in the step in which the first rate is set."""
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    told = []
    with LipschitzLR(optimizer, model, first_epoch="batch"):
        optimizer.register_step_pre_hook(lambda *_: told.append(optimizer.param_groups[0]["lr"]))
        first, second = batches(2)
        one_step(model, optimizer, first)
        one_step(model, optimizer, second)
    assert told[0] == told[1] != 7.0
