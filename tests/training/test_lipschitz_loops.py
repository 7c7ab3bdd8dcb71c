"""LipschitzLR in loops as users write them: mixed precision, accumulation, compilation, options."""

from math import sqrt

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lrsearch import LipschitzLR
from lrsearch.bounds import tikhonov_norm

ROWS = 16


def network(*before_the_last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *before_the_last, nn.Linear(8, 3))


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, 6, generator=generator) for _ in range(count)]


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.05, **options)


def spied(model, inputs):
    """What the last layer really gets, taken by a hook of the test's own."""
    seen = []
    handle = model[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    loss = cross_entropy(model(inputs), inputs[:, :3].argmax(1))
    handle.remove()
    return loss, seen[0]


def test_autocast_gives_the_norm_of_the_rounded_activations_in_single_precision():
    model = network()
    optimizer = sgd(model)
    controller = LipschitzLR(optimizer, model)
    norms = []
    for inputs in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss, activations = spied(model, inputs)
        assert activations.dtype == torch.bfloat16
        norms.append(activations.double().norm().item())
        loss.backward()
        optimizer.step()
    last = controller.step()
    assert last.k_z == pytest.approx(max(norms), rel=1e-6)
    assert last.lr == pytest.approx(1 / (2 / 3 * last.k_z / ROWS), rel=1e-12)


def test_a_scaled_loss_leaves_the_bound_alone_and_a_skipped_step_is_no_step():
    model = network()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    controller = LipschitzLR(optimizer, model, first_epoch="batch")
    overflow, good = batches(2)
    loss, _ = spied(model, overflow)
    (scaler.scale(loss) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert controller.lr == 0.05  # the optimizer never ran
    optimizer.zero_grad()
    loss, activations = spied(model, good)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    largest = max(activations.norm(), model[1](model[0](overflow)).norm())
    assert controller.last.epoch == -1
    assert controller.last.k_z >= activations.norm().item()
    assert controller.last.k_z == pytest.approx(largest.item(), rel=0.2)
    assert controller.lr == pytest.approx(1 / controller.last.lipschitz, rel=1e-12)


@pytest.mark.parametrize("micro", [2, 4])
def test_the_bound_of_micro_batches_bounds_the_accumulated_gradient(micro):
    """m is the rows of a micro-batch: the mean of gradients is no longer than the longest."""
    model = network()
    optimizer = sgd(model)
    controller = LipschitzLR(optimizer, model, supremum=True)
    gradients = []
    for inputs in batches():
        for part in inputs.chunk(micro):
            (cross_entropy(model(part), part[:, :3].argmax(1)) / micro).backward()
        gradients.append(model[-1].weight.grad.norm().item())
        optimizer.step()
        optimizer.zero_grad()
    assert controller.step().lipschitz >= max(gradients)


def test_dropout_and_batch_norm_before_the_last_layer_are_seen_as_trained():
    model = network(nn.BatchNorm1d(8), nn.Dropout(0.5))
    optimizer = sgd(model)
    controller = LipschitzLR(optimizer, model)
    norms = []
    for inputs in batches():
        loss, activations = spied(model, inputs)
        norms.append(activations.norm().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert controller.step().k_z == pytest.approx(max(norms), rel=1e-6)


def test_a_compiled_model_trains_with_the_same_rates_as_the_plain_one():
    rates = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend="aot_eager")):
        torch._dynamo.reset()
        model = network()
        optimizer = sgd(model)
        outer = wrap(model)
        controller = LipschitzLR(optimizer, outer, first_epoch="batch")
        found = []
        for _ in range(3):
            for inputs in batches():
                optimizer.zero_grad()
                cross_entropy(outer(inputs), inputs[:, :3].argmax(1)).backward()
                optimizer.step()
                found.append(controller.lr)
            controller.step()
        rates.append(found)
    assert rates[1] == pytest.approx(rates[0], rel=1e-5)
    assert len(set(rates[0])) == 3


def test_the_texts_norm_is_that_of_the_largest_unit():
    model = network()
    controller = LipschitzLR(sgd(model), model, norm="unit")
    inputs = batches(1)[0]
    model(inputs)
    activations = model[1](model[0](inputs))
    last = controller.step()
    assert last.k_z == pytest.approx(activations.norm(dim=0).max().item(), rel=1e-6)
    assert last.k_z < activations.norm().item()


def test_units_are_counted_over_all_rows_of_a_sequence():
    model = network()
    controller = LipschitzLR(sgd(model), model, norm="unit")
    inputs = torch.stack(batches(3))
    model(inputs)
    activations = model[1](model[0](inputs)).reshape(-1, 8)
    assert controller.step().k_z == pytest.approx(activations.norm(dim=0).max().item(), rel=1e-6)


@pytest.mark.parametrize("squared", ["norm", "elementwise", "mean"])
def test_each_reading_of_the_squared_gradient_written_plainly(squared):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.01)
    controller = LipschitzLR(optimizer, model, squared=squared)
    inputs = batches(1)[0]
    model(inputs)
    a = model[1](model[0](inputs)).detach()
    penalty = 0.01 * max(p.norm().item() for p in model.parameters())
    data = 2 / 3 * a.norm().item() / ROWS
    S = {
        "norm": data**2 + penalty**2,
        "elementwise": (2 / 3 / ROWS) ** 2 * (a * a).norm().item()
        + 2 * data * penalty
        + penalty**2,
        "mean": (data**2 + penalty**2) / 24,
    }[squared]
    assert controller.step().lr == pytest.approx((sqrt(S) + 1e-8) / (data + penalty), rel=1e-5)


def test_the_loss_scale_and_a_tikhonov_term_enter_the_bound():
    model = network()
    gamma = torch.diag(torch.tensor([1.0, 2.0, 0.5]))
    inputs = batches(1)[0]
    found = {}
    for name, options in {
        "plain": {},
        "scaled": {"loss_scale": 2.0},
        "tikhonov": {"tikhonov": tikhonov_norm(gamma)},
    }.items():
        with LipschitzLR(sgd(model), model, **options) as controller:
            model(inputs)
            found[name] = controller.step()
    plain = found["plain"]
    assert found["scaled"].lipschitz == pytest.approx(2 * plain.lipschitz, rel=1e-12)
    expected = plain.lipschitz + 2 * plain.weight_bound * 4.0
    assert found["tikhonov"].lipschitz == pytest.approx(expected, rel=1e-6)
