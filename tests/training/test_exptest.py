"""The torch shell: what a decision does to weights, rates and records, and how it resumes."""

import gc
import io
import random
import types
import weakref

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from lrsearch.controllers.replay import search_verdict
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.studies.attributes import PVALUE, REASON, WINDOW_PREFIX
from lrsearch.training.exptest import ExpTest

NAN = float("nan")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)


def rows(seed=0, n=64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 6, generator=generator)
    noise = 0.3 * torch.randn(n, 1, generator=generator)
    return inputs, inputs @ torch.arange(6.0)[:, None] / 6.0 + noise


INPUTS, TARGETS = rows()


class Run:
    """A model, an optimizer and ExpTest; batch number i is the same in every run."""

    def __init__(self, *, seed=0, lr=0.05, momentum=0.9, **options):
        torch.manual_seed(seed)
        self.model = Net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)
        self.controller = ExpTest(self.optimizer, model=self.model, **options)
        self.count = 0

    def step(self, loss=None):
        chosen = torch.randperm(64, generator=torch.Generator().manual_seed(self.count))[:16]
        self.count += 1
        actual = nn.functional.mse_loss(self.model(INPUTS[chosen]), TARGETS[chosen])
        actual.backward()
        self.optimizer.step()
        decision = self.controller.step(actual if loss is None else loss)
        self.optimizer.zero_grad()
        return decision

    def tensors(self):
        return [t.detach().clone() for t in (*self.model.parameters(), *self.model.buffers())]

    def state(self):
        """A checkpoint as a user would write it, through a file."""
        buffer = io.BytesIO()
        parts = {"model": self.model, "optimizer": self.optimizer, "exptest": self.controller}
        torch.save({name: part.state_dict() for name, part in parts.items()}, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)

    def load(self, state, count):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.controller.load_state_dict(state["exptest"])
        self.count = count


def kinds(run, steps):
    return [run.step().kind for _ in range(steps)]


# ---------------------------------------------------------------- the course of a run


def test_a_good_rate_is_accepted_and_then_watched():
    run = Run(lr=0.05)
    seen = []
    for _ in range(600):
        decision = run.step()
        if decision.window is not None:
            seen.append((decision.kind, run.controller.phase))
    assert seen[0] == ("accept", "training")
    assert [window.decision for window in run.controller.windows] == [kind for kind, _ in seen]
    assert run.controller.steps == 600
    stops = [w.stop for w in run.controller.windows]
    assert stops == sorted(stops)


def test_between_window_ends_the_answer_is_continue_without_a_window():
    run = Run()
    for _ in range(29):
        decision = run.step()
        assert (decision.kind, decision.lr, decision.window) == ("continue", 0.05, None)


def test_a_restart_brings_everything_back():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what is restored
    run = Run(lr=0.05)
    before = run.tensors()
    generators = (torch.get_rng_state(), random.getstate())
    expected = torch.rand(3), np.random.standard_normal(3), random.random()  # noqa: NPY002
    for _ in range(10):
        run.step()
    decision = run.step(NAN)
    assert (decision.kind, decision.reason) == ("restart", "diverged")
    assert decision.lr == pytest.approx(0.05 * 0.33)
    for now, then in zip(run.tensors(), before, strict=True):
        assert torch.equal(now, then)
    assert not run.optimizer.state  # no momentum yet
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.standard_normal(3), expected[1])  # noqa: NPY002
    assert random.random() == expected[2]
    assert run.controller.lr == run.optimizer.param_groups[0]["lr"] == decision.lr


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_loss_that_is_not_finite_restarts_on_that_very_call(bad, as_tensor):
    run = Run()
    for rung in (1, 2, 3):
        run.step()
        decision = run.step(torch.tensor(bad) if as_tensor else bad)
        assert decision.kind == "restart"
        assert decision.lr == pytest.approx(0.05 * 0.33**rung)
    assert [w.stop - w.start for w in run.controller.windows] == [2, 2, 2]


def test_restarts_end_with_a_stop_that_stays():
    run = Run()
    decisions = [run.step(NAN) for _ in range(17)]
    assert [d.kind for d in decisions] == ["restart"] * 16 + ["stop"]
    later = run.step()
    assert (later.kind, later.window) == ("stop", None)
    assert run.controller.steps == 17


def test_groups_keep_their_ratios_through_restart_and_decay():
    weights = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.4}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    controller = ExpTest(optimizer, full_batch=True)
    controller.step(NAN)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.033, 0.132])
    curve = iter([*(2.0 * 0.9**i for i in range(90)), *[2.0 * 0.9**89] * 4000])
    while controller.step(next(curve)).kind != "decay":
        pass
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.033 * 0.33, 0.132 * 0.33])


def test_a_decay_keeps_weights_and_momentum():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    controller = ExpTest(optimizer, full_batch=True)
    curve = iter([*(2.0 * 0.9**i for i in range(90)), *[2.0 * 0.9**89] * 4000])
    while True:
        weight.grad = torch.ones(3)
        optimizer.step()
        before = weight.detach().clone()
        momentum = optimizer.state[weight]["momentum_buffer"].clone()
        if controller.step(next(curve)).kind == "decay":
            break
    assert torch.equal(weight, before)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum)


@pytest.mark.parametrize("total", [1, 10, 45, 300])
def test_the_budgets_end_says_stop(total):
    run = Run(total_steps=total)
    seen = kinds(run, total + 2)
    assert seen[total - 1 :] == ["stop"] * 3
    assert "stop" not in seen[: total - 1]
    last = run.step()
    assert last.reason in ("budget spent", "budget spent before a rate passed its test")
    assert run.controller.steps == total


def test_divergence_at_the_budgets_end_is_a_stop_too():
    run = Run(total_steps=5)
    kinds(run, 4)
    assert run.step(NAN).kind == "stop"
    assert run.controller.windows[-1].decision == "restart"


# ---------------------------------------------------------------- the window's parts


def test_the_correction_is_eq_53_over_the_first_w_steps():
    run = Run(lr=0.02, momentum=0.0)
    gradients = []
    parameters = list(run.model.parameters())
    run.optimizer.register_step_pre_hook(
        lambda *_: gradients.append([p.grad.clone().flatten() for p in parameters])
    )
    while not run.controller.windows:
        run.step()
    window = run.controller.windows[0]
    w = run.controller.state_dict()["state"]["raw_length"]
    vectors = np.array([torch.cat(parts).numpy() for parts in gradients[:w]], dtype=float)
    expected = np.linalg.norm(vectors, axis=1).sum() / np.linalg.norm(vectors.sum(axis=0))
    assert window.correction == pytest.approx(expected, rel=1e-5)
    assert window.length == round(expected * w)


def test_gradient_sums_are_freed_once_the_correction_is_known():
    run = Run(lr=0.02)
    watch = weakref.ref(run.controller._sums)
    assert watch() is not None
    while run.controller.state_dict()["state"]["length"] is None:
        run.step()
    gc.collect()
    assert watch() is None
    assert run.controller._sums is None


def test_full_batch_runs_keep_no_gradient_sums():
    run = Run(full_batch=True)
    run.step()
    assert run.controller._sums is None
    assert run.controller.state_dict()["sums"] is None


def held(controller, *others):
    """Floats in tensors that the controller holds and that neither it nor others train with."""
    live = {t.untyped_storage().data_ptr() for t in all_tensors(others)}
    mine = {t.untyped_storage().data_ptr(): t for t in all_tensors([controller], but=others)}
    return sum(t.numel() for where, t in mine.items() if where not in live)


def all_tensors(roots, but=()):
    """Tensors that can be reached from ``roots``, not through ``but``, modules and classes."""
    seen, queue = {id(root) for root in but}, list(roots)
    while queue:
        thing = queue.pop()
        skip = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
        if id(thing) in seen or isinstance(thing, skip):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            yield thing
            queue += [] if thing.grad is None else [thing.grad]
        else:
            queue += gc.get_referents(thing)


@pytest.mark.parametrize("with_trial", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_one_copy_of_the_parameters_while_searching_and_none_after(make, with_trial):
    """The gradient sums while they are needed; where training starts over from is in a file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 2000), nn.Tanh(), nn.Linear(2000, 1))
    size = sum(p.numel() for p in model.parameters())
    optimizer = make(model.parameters(), lr=1e-4)
    for _ in range(2):  # the optimizer has a state when the search starts
        nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
        optimizer.step()
        optimizer.zero_grad()
    options = {"trial": asked()[1]} if with_trial else {}
    controller = ExpTest(optimizer, model=model, total_steps=1000, race=False, **options)
    copies = {"summing": [], "searching": [], "training": []}
    for loss in 0.3 + 2.0 * np.exp(-np.arange(200) / 40.0):
        nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
        optimizer.step()
        controller.step(float(loss))
        optimizer.zero_grad()
        stage = "summing" if controller._sums is not None else controller.phase
        if len(copies[stage]) < 20:
            copies[stage].append(held(controller, model, optimizer) / size)
    assert max(copies["summing"]) == pytest.approx(1.0, abs=0.5)
    assert copies["searching"]
    assert max(copies["searching"] + copies["training"][1:]) < 0.5
    assert copies["training"]


def test_no_copy_of_the_parameters_while_rates_are_raced():
    model = nn.Sequential(nn.Linear(6, 2000), nn.Tanh(), nn.Linear(2000, 1))
    size = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    controller = ExpTest(optimizer, model=model, total_steps=1000)
    copies = []
    for _ in range(120):
        loss = nn.functional.mse_loss(model(INPUTS), TARGETS)
        loss.backward()
        optimizer.step()
        decision = controller.step(loss)
        optimizer.zero_grad()
        # Where a probe has just ended, torch's new optimizer state is not in use yet.
        copies.append(held(controller, model, optimizer) / size)
        assert decision.kind in ("continue", "restart")
    assert [w.decision for w in controller.windows] == ["restart"] * 2
    assert max(copies) < 0.5


CURVES = {
    "decay": lambda t: 0.3 + 2.0 * np.exp(-t / 12.0),
    "flat": lambda t: np.full(t.size, 2.3),
    "rise": lambda t: 2.0 + 0.01 * t,
    "shoulder": lambda t: 0.3 + 2.0 / (1.0 + np.exp((t - 60.0) / 10.0)),
    "explosion": lambda t: np.exp(0.2 * t),
}


@pytest.mark.parametrize("mode", ["robust", "paper"])
@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("lr", [0.04, 1.0])
def test_the_first_verdict_equals_the_replay_of_the_curve(mode, name, noise, lr):
    steps = np.arange(600)
    losses = CURVES[name](steps) + noise * np.random.default_rng(0).standard_normal(steps.size)
    weight = nn.Parameter(torch.ones(1))
    controller = ExpTest(torch.optim.SGD([weight], lr=lr), full_batch=True, mode=mode)
    for loss in losses.tolist():
        decision = controller.step(loss)
        if decision.kind != "continue":
            break
    replayed = search_verdict(ExpTestSettings(mode=mode), losses[: controller.steps], lr=lr)
    assert (decision.kind, decision.reason) == (replayed.kind, replayed.reason)
    assert decision.lr == pytest.approx(replayed.lr)
    assert decision.window.pvalue == replayed.window.pvalue
    assert (decision.window.start, decision.window.stop) == (
        replayed.window.start,
        replayed.window.stop,
    )


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize(
    "cut", [5, 29, 31, 50, 128, 129, 150, 260], ids=lambda cut: f"after {cut} steps"
)
def test_a_run_that_was_saved_goes_on_exactly(cut):
    """Cuts fall among the gradient sums, inside windows and right after a restart at step 129."""

    def walk(run, until, sink):
        while run.count < until:
            sink.append(repr(run.step(NAN if run.count in (128, 300) else None)))

    whole, first, second = [], [], []
    straight = Run(lr=0.02)
    walk(straight, 700, whole)

    early = Run(lr=0.02)
    walk(early, cut, first)
    state = early.state()
    walk(early, cut + 20, [])  # the checkpoint shares no memory with the run
    late = Run(seed=99, lr=0.7)
    late.load(state, cut)
    walk(late, 700, second)

    assert first + second == whole
    assert sum("kind='restart'" in text for text in whole) >= 2
    for a, b in zip(straight.tensors(), late.tensors(), strict=True):
        assert torch.equal(a, b)
    assert repr(straight.controller.windows) == repr(late.controller.windows)


def test_a_stopped_run_stays_stopped():
    run = Run(total_steps=5)
    kinds(run, 5)
    other = Run(total_steps=5)
    other.load(run.state(), 5)
    assert other.step().kind == "stop"


def test_other_settings_are_refused():
    state = Run(alpha=0.05).state()
    with pytest.raises(InvalidArgumentError, match="but this ExpTest has"):
        Run(alpha=0.01).controller.load_state_dict(state["exptest"])


# ---------------------------------------------------------------- with a trial


def asked():
    study = optuna.create_study()
    trial = study.ask()
    trial.suggest_float("lr", 1e-5, 1.0, log=True)
    return study, trial


def test_with_a_trial_a_rejected_rate_prunes():
    study, trial = asked()
    run = Run(trial=trial)
    run.step()
    with pytest.raises(optuna.TrialPruned, match="diverged"):
        run.step(NAN)
    attributes = study.trials[0].user_attrs
    assert attributes[REASON] == "diverged"
    assert attributes[PVALUE] == 1.0
    assert attributes[f"{WINDOW_PREFIX}0"]["decision"] == "restart"


def test_with_a_trial_a_rising_loss_prunes_with_its_p_value():
    study, trial = asked()
    weight = nn.Parameter(torch.ones(1))
    controller = ExpTest(torch.optim.SGD([weight], lr=0.1), trial=trial, full_batch=True)
    losses = 1.0 + 0.02 * np.arange(200) + 0.01 * np.random.default_rng(0).standard_normal(200)
    with pytest.raises(optuna.TrialPruned, match="rising"):
        list(map(controller.step, losses.tolist()))
    assert study.trials[0].user_attrs[REASON] == "rising"
    assert study.trials[0].user_attrs[PVALUE] == controller.windows[-1].pvalue


def test_a_trial_keeps_no_point_of_restart_and_says_so_where_one_is_needed():
    run = Run(trial=asked()[1])
    kinds(run, 5)
    state = run.state()
    assert state["exptest"]["snapshot"] is None
    Run(trial=asked()[1]).load(state, 5)
    with pytest.raises(InvalidArgumentError, match="pass trial= to this ExpTest too"):
        Run().load(state, 5)


def test_with_a_trial_windows_are_reported():
    study, trial = asked()
    run = Run(lr=0.05, trial=trial)
    kinds(run, 400)
    frozen = study.trials[0]
    looked = {w.last_step: w.loss_mean for w in run.controller.windows}
    assert frozen.intermediate_values == looked
    assert len([k for k in frozen.user_attrs if k.startswith(WINDOW_PREFIX)]) == len(looked)


# ---------------------------------------------------------------- misuse


def test_misuse_is_named():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(InvalidTypeError, match=r"must be a torch.optim.Optimizer, got Parameter"):
        ExpTest(weight)
    with pytest.raises(InvalidTypeError, match=r"model must be a torch.nn.Module, got str"):
        ExpTest(optimizer, model="net")
    with pytest.raises(InvalidArgumentError, match="alpha"):
        ExpTest(optimizer, alpha=2.0)
    zero = torch.optim.SGD([weight], lr=0.0)
    with pytest.raises(InvalidArgumentError, match="lr of the optimizer's parameter group 0"):
        ExpTest(zero)


@pytest.mark.parametrize("loss", [None, [1.0], torch.zeros(2), torch.zeros(0)])
@pytest.mark.parametrize("first", [True, False])
def test_a_loss_that_is_no_scalar_is_an_error(loss, first):
    controller = ExpTest(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    if not first:
        controller.step(torch.tensor(1.0))
    with pytest.raises((ValueError, TypeError)):
        controller.step(loss)
