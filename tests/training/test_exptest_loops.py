"""ExpTest in people's loops: accumulation, mixed precision, schedulers; and in the paper's."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.optim import lr_scheduler as schedules
from waits import Waits

from lrsearch.training import exptest
from lrsearch.training.exptest import ExpTest
from lrsearch.training.recorder import DeviceLosses

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(64, 6, generator=GENERATOR)
TARGETS = INPUTS.sum(dim=1, keepdim=True) + 0.3 * torch.randn(64, 1, generator=GENERATOR)


def batch(step, size=16):
    chosen = torch.randperm(64, generator=torch.Generator().manual_seed(step))[:size]
    return INPUTS[chosen], TARGETS[chosen]


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(6, 1)


# ---------------------------------------------------------------- never waiting


def test_the_counter_counts():
    with Waits() as waits:
        float(torch.ones(()) + 1)
        torch.ones(1).double()
    assert waits.seen == {"_local_scalar_dense": 1, "_to_copy": 1}


@pytest.mark.parametrize("device_losses", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)])
def test_between_window_ends_nothing_waits(monkeypatch, device_losses, scaled, rate):
    """While gradients are summed, while the window fills, and after it passed."""
    if device_losses:
        monkeypatch.setattr(exptest, "make_recorder", lambda loss: DeviceLosses())
    model = linear()
    rate = rate.clone() if isinstance(rate, torch.Tensor) else rate
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    controller = ExpTest(optimizer, model=model, scaler=scaler)
    quiet = Counter()
    for step in range(800):
        inputs, targets = batch(step)
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        boundary = controller.steps + 1 >= controller._due
        with Waits() as waits:
            controller.step(loss)
        optimizer.zero_grad()
        if not boundary:
            summing = controller._sums is not None
            quiet["summing" if summing else controller.phase] += 1
            # A loss of the CPU is read there, and the read is all that a step asks of torch. Of a
            # device's, one chunk of 16 is made float32 and sent: no wait on an accelerator.
            assert waits.seen == ({} if device_losses else {"_local_scalar_dense": 1}), step
            if not summing and not device_losses:
                assert waits.all == waits.seen
    assert quiet["summing"] > 25
    assert quiet["searching"] > 5
    assert quiet["training"] > 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_between_window_ends_nothing_waits_on_cuda():
    model = linear().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = ExpTest(optimizer, model=model)
    inputs, targets = INPUTS.cuda(), TARGETS.cuda()
    for _ in range(200):
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        boundary = controller.steps + 1 >= controller._due
        torch.cuda.set_sync_debug_mode("default" if boundary else "error")
        try:
            controller.step(loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizer.zero_grad()
    assert controller.windows


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_cuda_decides_as_one_on_the_cpu():
    def walk(device):
        model = linear().to(device)
        controller = ExpTest(torch.optim.SGD(model.parameters(), lr=0.05), model=model)
        for step in range(300):
            inputs, targets = (part.to(device) for part in batch(step))
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            controller._optimizer.step()
            controller.step(loss)
            controller._optimizer.zero_grad()
        return [(w.decision, w.stop) for w in controller.windows]

    assert walk("cuda") == walk("cpu")


def test_losses_of_a_device_lead_to_the_same_decisions(monkeypatch):
    def walk():
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        controller, seen = ExpTest(optimizer, model=model), []
        for step in range(300):
            inputs, targets = batch(step)
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            seen.append(repr(controller.step(loss)))
            optimizer.zero_grad()
        return seen

    host = walk()
    monkeypatch.setattr(exptest, "make_recorder", lambda loss: DeviceLosses())
    assert walk() == host


# ---------------------------------------------------------------- accumulation, mixed precision


def test_accumulated_steps_decide_as_whole_ones():
    def walk(parts):
        model = linear().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        controller, seen = ExpTest(optimizer, model=model), []
        for step in range(300):
            inputs, targets = (part.double() for part in batch(step))
            total = 0.0
            for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
                loss = nn.functional.mse_loss(model(x), y) / parts
                loss.backward()
                total += loss.detach()
            optimizer.step()
            seen.append(controller.step(total))
            optimizer.zero_grad()
        return seen

    whole, accumulated = walk(1), walk(4)
    assert [d.kind for d in whole] == [d.kind for d in accumulated]
    assert any(d.window is not None for d in whole)
    for one, other in zip(whole, accumulated, strict=True):
        if one.window is not None:
            assert other.window.correction == pytest.approx(one.window.correction, rel=1e-5)
            assert other.window.stop == one.window.stop


def test_a_step_that_the_scaler_skips_does_not_spoil_the_correction():
    def walk(spoiled):
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        controller = ExpTest(optimizer, model=model, scaler=scaler)
        for step in range(1500):
            inputs, targets = batch(step)
            loss = nn.functional.mse_loss(model(inputs), targets)
            scaler.scale(loss).backward()
            if step == spoiled:
                model.weight.grad[0, 0] = float("inf")
            before = model.weight.detach().clone()
            scaler.step(optimizer)
            assert torch.equal(before, model.weight) == (step == spoiled)
            scaler.update()
            controller.step(loss)
            optimizer.zero_grad()
            if controller.windows:
                return controller.windows[0]
        raise AssertionError("no window ended")

    clean, spoiled = walk(None), walk(7)
    assert np.isfinite(spoiled.correction)
    assert spoiled.correction != 1.0
    assert spoiled.correction == pytest.approx(clean.correction, rel=0.05)
    assert spoiled.decision == clean.decision


def test_bfloat16_losses_are_read():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller = ExpTest(optimizer, model=model, full_batch=True)
    for _ in range(30):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (model(INPUTS) - TARGETS.bfloat16()).square().mean()
        assert loss.dtype == torch.bfloat16
        loss.backward()
        optimizer.step()
        controller.step(loss)
        optimizer.zero_grad()
    controller.step(float("nan"))
    assert controller.windows[-1].loss_first > 0.0


def test_a_rate_that_is_a_tensor_is_driven_in_place():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=torch.tensor(0.5))
    controller = ExpTest(optimizer)
    controller.step(1.0)
    decision = controller.step(float("nan"))
    assert decision.lr == float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.165)
    assert controller.lr == decision.lr


# ---------------------------------------------------------------- schedulers


SCHEDULES = {
    "StepLR": lambda o: schedules.StepLR(o, 20, gamma=0.5),
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda step: 1.0 / (1.0 + 0.01 * step)),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 500),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1, dtype=torch.float64)])
def test_decisions_tell_the_true_rate_next_to_a_scheduler(name, rate):
    weight = nn.Parameter(torch.ones(1))
    rate = rate.clone() if isinstance(rate, torch.Tensor) else rate
    optimizer = torch.optim.SGD([weight], lr=rate)
    scheduler = SCHEDULES[name](optimizer)
    controller = ExpTest(optimizer, schedulers=scheduler, full_batch=True)

    def plain(step, factor):
        other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1 * factor)
        shadow = SCHEDULES[name](other)
        for _ in range(step):
            other.step()
            shadow.step()
        return other.param_groups[0]["lr"]

    for step in range(40):
        decision = controller.step(2.0 * 0.9**step)
        optimizer.step()
        scheduler.step()
    decision = controller.step(float("nan"))
    assert decision.kind == "restart"
    assert decision.lr == float(optimizer.param_groups[0]["lr"])
    assert decision.lr == pytest.approx(plain(0, 0.33))
    for step in range(1, 10):
        optimizer.step()
        scheduler.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(plain(step, 0.33))
        if not isinstance(rate, torch.Tensor):
            assert controller.step(1.0 / step).lr == optimizer.param_groups[0]["lr"]


# ---------------------------------------------------------------- the paper's algorithm, plainly


def least_squares_decay(losses):
    """SSE of the best A exp(-B t) + C with A >= 0, over a fine grid of B."""
    t = np.arange(len(losses))
    centred = losses - losses.mean()
    best = centred @ centred
    for rate in np.geomspace(1e-5, 40.0 * len(t), 3000) / len(t):
        e = np.expm1(-rate * t)
        e -= e.mean()
        best = min(best, centred @ centred - max(e @ centred, 0.0) ** 2 / (e @ e))
    return best


def algorithm_1(loss_and_gradient, theta_0, lr, noise, *, alpha=0.05, beta=0.33):
    """[E], Algorithm 1, for full-batch descent (c_w = 1); windows have at least 4 steps."""
    theta, searching, window, losses, seen = theta_0.copy(), True, None, [], []
    first_loss = None
    for step in range(len(noise)):
        loss, gradient = loss_and_gradient(theta)
        loss += noise[step]
        losses.append(loss)
        theta = theta - lr * gradient
        if first_loss is None:
            first_loss = loss
        window = max(int(2 * np.sqrt(2) * first_loss / (lr * np.e) + 0.5), 4)
        if len(losses) < window:
            continue
        y, n = np.array(losses), len(losses)
        line = stats.linregress(np.arange(n), y, alternative="less")
        if searching:
            linear = np.sum((y - line.intercept - line.slope * np.arange(n)) ** 2)
            curved = least_squares_decay(y)
            F = max((linear - curved) / (curved / (n - 3)), 0.0)
            p = stats.f.sf(F, 1, n - 3)
            if p < alpha:
                kind, searching = "accept", False
            else:
                kind, theta, lr = "restart", theta_0.copy(), beta * lr
        else:
            p = line.pvalue
            kind = "continue" if p < alpha else "decay"
            lr = lr if p < alpha else beta * lr
        seen.append((step + 1, kind, lr, p))
        losses = []
    return seen


@pytest.mark.parametrize("seed", range(3))
def test_paper_mode_walks_with_algorithm_1(seed):
    """A quadratic whose first rate is just beyond stability: restarts, an accept, then decays."""
    curvatures = np.array([1.0, 0.02, 0.005])
    theta_0 = np.array([9.0, 4.0, 4.0])
    noise = 2.0 * np.random.default_rng(seed).standard_normal(1500)
    first_rate = 2.0005

    def loss_and_gradient(theta):
        return 0.5 * curvatures @ theta**2, curvatures * theta

    expected = algorithm_1(loss_and_gradient, theta_0, first_rate, noise)

    theta = nn.Parameter(torch.tensor(theta_0))
    scale = torch.tensor(curvatures)
    optimizer = torch.optim.SGD([theta], lr=first_rate)
    controller = ExpTest(optimizer, mode="paper", full_batch=True)
    seen = []
    for step in range(len(noise)):
        loss = 0.5 * (scale * theta**2).sum() + noise[step]
        loss.backward()
        optimizer.step()
        decision = controller.step(loss)
        optimizer.zero_grad()
        if decision.window is not None:
            seen.append((step + 1, decision.kind, decision.lr, decision.window.pvalue))

    assert [row[:2] for row in seen] == [row[:2] for row in expected]
    assert len(seen) >= 5
    np.testing.assert_allclose([row[2] for row in seen], [row[2] for row in expected], rtol=1e-12)
    np.testing.assert_allclose(
        [row[3] for row in seen], [row[3] for row in expected], rtol=1e-2, atol=1e-12
    )
    assert {"accept", "decay"} <= {row[1] for row in seen}
