"""What a restart brings back, and how rates are scaled."""

import io
import random
import tempfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from lrsearch.training.snapshot import Snapshot, random_state, scale_rates, set_random_state


class Net(nn.Module):
    """Batch-norm statistics, tied weights, a buffer outside of state_dict, and a frozen weight."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.tied = self.first.weight
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x):
        self.seen += 1
        return self.last(self.norm(self.first(x)))


def advance(model, optimizer, steps=3):
    for _ in range(steps):
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def everything(model):
    tensors = [*model.parameters(), *model.buffers()]
    return [tensor.detach().clone() for tensor in tensors]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_weights_buffers_and_optimizer_come_back(kind):
    model = Net()
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if kind == "momentum"
        else torch.optim.Adam(model.parameters(), lr=0.1)
    )
    advance(model, optimizer)  # a start that is not fresh
    snapshot = Snapshot(optimizer, model)
    before = everything(model)
    torch.manual_seed(5)
    advance(model, optimizer)
    after = everything(model)
    model.frozen.data.zero_()
    snapshot.restore()
    assert_same(everything(model), before)
    torch.manual_seed(5)
    advance(model, optimizer)  # equal only if the momentum came back too
    assert_same(everything(model), after)
    snapshot.restore()  # a second time: the copies were not handed out
    assert_same(everything(model), before)


@pytest.mark.parametrize("trouble", ["full", "nowhere"])
def test_where_no_file_can_be_written_everything_comes_back_from_memory(monkeypatch, trouble):
    def no_room():
        if trouble == "full":
            return open("/dev/full", "w+b")
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", no_room)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    advance(model, optimizer)
    snapshot = Snapshot(optimizer, model)
    before = everything(model)
    for _ in range(2):  # a second time: the copies were not handed out
        advance(model, optimizer)
        snapshot.restore()
        assert_same(everything(model), before)
        assert optimizer.state[model.last.weight]["step"] == 3.0
    assert_same(snapshot.state_dict()["tensors"][: len(before)], before)


def test_without_a_model_the_optimizers_parameters_come_back():
    model = Net()
    optimizer = torch.optim.SGD(model.last.parameters(), lr=0.1)
    snapshot = Snapshot(optimizer)
    before = model.last.weight.detach().clone()
    advance(model, optimizer)
    snapshot.restore()
    assert torch.equal(model.last.weight, before)
    assert model.seen == 3.0


def test_random_generators_come_back():
    weight = nn.Parameter(torch.zeros(1))
    snapshot = Snapshot(torch.optim.SGD([weight], lr=0.1))
    np.random.standard_normal(1)  # noqa: NPY002 - half of a pair is cached
    kept = random_state()
    first = (random.random(), np.random.standard_normal(3), torch.rand(3))  # noqa: NPY002
    set_random_state(kept)
    second = (random.random(), np.random.standard_normal(3), torch.rand(3))  # noqa: NPY002
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])
    assert torch.equal(first[2], second[2])
    snapshot.restore()
    third = torch.rand(3)
    snapshot.restore()
    assert torch.equal(third, torch.rand(3))


def test_a_saved_snapshot_restores_another_model():
    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    advance(model, optimizer)
    scheduler = schedules.StepLR(optimizer, 2)
    before = everything(model)
    buffer = io.BytesIO()
    torch.save(Snapshot(optimizer, model, [scheduler]).state_dict(), buffer)
    expected = torch.rand(3)
    buffer.seek(0)

    torch.manual_seed(2)
    other = Net()
    other_optimizer = torch.optim.Adam(other.parameters(), lr=0.5)
    other_scheduler = schedules.StepLR(other_optimizer, 2)
    snapshot = Snapshot(other_optimizer, other, [other_scheduler])
    snapshot.load_state_dict(torch.load(buffer, weights_only=True))
    snapshot.restore()
    assert_same(everything(other), before)
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------- rates


def two_groups(**options):
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.01}]
    return torch.optim.SGD(groups, **({"lr": 0.1} | options))


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def test_groups_keep_their_ratios():
    optimizer = two_groups()
    scale_rates(optimizer, 0.33)
    assert rates(optimizer) == pytest.approx([0.033, 0.0033])


def test_a_rate_that_is_a_tensor_is_scaled_in_place():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    scale_rates(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.05)


def test_a_tensor_that_groups_share_is_scaled_once():
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    groups = [{"params": [weight]} for weight in weights]
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.1))
    scale_rates(optimizer, 0.5)
    assert rates(optimizer) == pytest.approx([0.05, 0.05])


SCHEDULES = {
    "StepLR": lambda o: schedules.StepLR(o, 3, gamma=0.5),
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda step: 1.0 / (1.0 + step)),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 20),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.9),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, [0.1, 0.01], total_steps=40),
    "CyclicLR": lambda o: schedules.CyclicLR(o, [0.1, 0.01], [0.5, 0.05], step_size_up=4),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o,
        [schedules.ConstantLR(o, 0.5, 4), schedules.CosineAnnealingLR(o, 20)],
        milestones=[5],
    ),
    "LinearLR": lambda o: schedules.LinearLR(o, 0.1, total_iters=8),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduler_goes_on_at_the_scaled_rates(name):
    """A scaled run's rates are the unscaled run's, times the factor, at every later step."""

    def walk(factor):
        optimizer = two_groups(momentum=0.9)
        scheduler = SCHEDULES[name](optimizer)
        seen = []
        for step in range(15):
            optimizer.step()
            scheduler.step()
            if step == 6:
                scale_rates(optimizer, factor, [scheduler])
            if step >= 6:
                seen.append(rates(optimizer))
        return np.array(seen)

    np.testing.assert_allclose(walk(0.33), 0.33 * walk(1.0), rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_restart_winds_schedulers_back(name):
    optimizer = two_groups(momentum=0.9)
    scheduler = SCHEDULES[name](optimizer)
    snapshot = Snapshot(optimizer, schedulers=[scheduler])

    def walk():
        seen = [rates(optimizer)]
        for _ in range(12):
            optimizer.step()
            scheduler.step()
            seen.append(rates(optimizer))
        return seen

    first = walk()
    scale_rates(optimizer, 0.33, [scheduler])
    snapshot.restore()
    assert walk() == first
