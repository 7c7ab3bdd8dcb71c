"""The race in a user's own loop: where it ends, what it costs, what never wins, how it resumes."""

import io

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from lrsearch.controllers.race import Order, RaceSettings, Winner, next_move
from lrsearch.controllers.rungs import Probe, hopeless, was_hopeless
from lrsearch.errors import InvalidArgumentError
from lrsearch.training.exptest import ExpTest

NAN = float("nan")
STEPS = 600
OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "adam": lambda p, lr: torch.optim.Adam(p, lr),
}
# The best of 1e-3 * 3**k without a race, by the loss after STEPS steps.
GOOD = {
    ("logistic", "sgd"): 0.73,
    ("logistic", "momentum"): 0.027,
    ("logistic", "adam"): 0.027,
    ("mlp", "sgd"): 2.2,
    ("mlp", "momentum"): 0.24,
    ("mlp", "adam"): 0.081,
}


def rows():
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(600, 10, generator=generator)
    directions = torch.randn(10, 3, generator=generator)
    noise = torch.randn(600, 3, generator=generator)
    linear = (inputs @ directions + noise).argmax(1)
    bent = (inputs[:, :3].square().sum(1) > 3.0).long() + (inputs @ directions[:, 0] > 0).long()
    return inputs, {"logistic": linear, "mlp": bent}


INPUTS, TARGETS = rows()


class Loop:
    """A user's loop: batch number i is the same in every loop, and none comes twice."""

    def __init__(self, kind, optimizer, lr, *, scale=1.0, unit=1.0, seed=0, **options):
        torch.manual_seed(seed)
        hidden = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3))
        self.model = nn.Linear(10, 3, bias=False) if kind == "logistic" else hidden
        if kind == "logistic":
            with torch.no_grad():
                self.model.weight.div_(unit)
        self.inputs, self.targets, self.scale = INPUTS * unit, TARGETS[kind], scale
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters(), lr)
        options = {"total_steps": STEPS, "model": self.model} | options
        self.controller = ExpTest(self.optimizer, **options)
        self.count = 0

    def step(self):
        generator = torch.Generator().manual_seed(self.count)
        batch = torch.randint(0, 600, (32,), generator=generator)
        self.count += 1
        output = self.model(self.inputs[batch])
        loss = self.scale * nn.functional.cross_entropy(output, self.targets[batch])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return self.controller.step(loss)

    def run(self, until=STEPS):
        return [self.step() for _ in range(until - self.count)]

    def loss(self):
        with torch.no_grad():
            return float(nn.functional.cross_entropy(self.model(self.inputs), self.targets))

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]

    def state(self):
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


def probes(controller):
    return [window for window in controller.windows if window.reason.startswith("probe: ")]


def race_is_over(controller):
    return bool(controller.windows) and "wins: " in controller.windows[-1].reason


# ---------------------------------------------------------------- where it ends


@pytest.mark.parametrize("off", [1e-4, 1e4])
@pytest.mark.parametrize(("kind", "optimizer"), GOOD)
def test_a_rate_that_is_far_off_ends_near_a_good_one(kind, optimizer, off):
    """At least three quarters of what the good rate gains in as many steps without a race.

    A rate that is too low gains next to nothing where nobody looks higher, which is asserted too;
    one that is too high would use up its steps on the way down, or pass at a rate far too low.
    """
    rate = GOOD[kind, optimizer]
    good = Loop(kind, optimizer, rate, race=False)
    start = good.loss()
    good.run()
    raced = Loop(kind, optimizer, off * rate)
    raced.run()
    gain = start - good.loss()
    assert start - raced.loss() > 0.75 * gain
    if off < 1.0:
        alone = Loop(kind, optimizer, off * rate, race=False)
        alone.run()
        assert start - alone.loss() < 0.5 * gain


def test_the_winner_trains_from_the_first_weights_and_the_rate_falls_to_0_at_the_end():
    loop = Loop("mlp", "momentum", 2.4e-3)
    before = loop.weights()
    while not race_is_over(loop.controller):
        decision = loop.step()
    assert decision.kind == "restart"
    assert all(torch.equal(a, b) for a, b in zip(loop.weights(), before, strict=True))
    assert not loop.optimizer.state
    won = loop.controller.lr
    assert won > 2.4e-3
    assert decision.lr == won == loop.optimizer.param_groups[0]["lr"]
    loop.run(int(0.6 * STEPS) - 1)
    assert loop.controller.lr == won
    loop.run()
    assert loop.controller.lr < 0.05 * won


def test_every_probe_is_a_window_and_a_restart():
    loop = Loop("mlp", "adam", 0.081)
    told = [decision for decision in loop.run() if decision.window is not None]
    windows = loop.controller.windows
    assert [decision.window for decision in told] == windows
    assert [w.index for w in windows] == list(range(len(windows)))
    assert windows[0].start == 0
    assert windows[0].lr == pytest.approx(0.081)
    raced = probes(loop.controller)
    assert len(raced) >= 3
    assert [w.start for w in raced[1:]] == [w.stop for w in raced[:-1]]
    assert raced == windows[: len(raced)]
    assert {w.decision for w in raced} == {"restart"}
    assert ["wins: " in w.reason for w in raced] == [False] * (len(raced) - 1) + [True]


# ---------------------------------------------------------------- invariance


@pytest.mark.parametrize("off", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("scale", "unit"), [(1e3, 1.0), (1e-3, 1.0), (1.0, 30.0), (1.0, 0.03)])
def test_units_of_the_loss_and_of_the_inputs_do_not_count(scale, unit, off):
    """SGD of a linear model without a bias: rate / scale / unit**2 takes the same steps."""
    rate = 0.73 * off
    plain = Loop("logistic", "sgd", rate)
    other = Loop("logistic", "sgd", rate / scale / unit**2, scale=scale, unit=unit)
    while not race_is_over(plain.controller):
        plain.step()
    plain.run(plain.count + 20)
    other.run(plain.count)
    ours, theirs = probes(plain.controller), probes(other.controller)
    assert [(w.start, w.stop, w.reason) for w in ours] == [
        (w.start, w.stop, w.reason) for w in theirs
    ]
    rates = [w.lr / scale / unit**2 for w in ours]
    assert [w.lr for w in theirs] == pytest.approx(rates, rel=1e-9)
    torch.testing.assert_close(other.model.weight * unit, plain.model.weight, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- what never wins


def walk(curve, lr=1.0, *, total_steps=STEPS, grad=None, with_model=False, steps=None, **options):
    """A run whose loss is ``curve(rate, step of the probe)``; and the weights' gradient."""
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    if with_model:
        options["model"] = model
    controller = ExpTest(optimizer, total_steps=total_steps, **options)
    since = 0
    for _ in range(steps or total_steps):
        rate = optimizer.param_groups[0]["lr"]
        for p in model.parameters():
            p.grad = torch.full_like(p, 1e-3 if grad is None else grad(rate))
        optimizer.step()
        decision = controller.step(curve(rate, since))
        since = 0 if decision.kind == "restart" else since + 1
        if race_is_over(controller):
            break
    return controller


def faster(rate, step):
    """The higher the rate, the faster the fall."""
    return 1.0 + float(np.exp(-step * min(rate, 1.0) / 10.0))


@pytest.mark.parametrize("with_model", [False, True])
def test_a_dead_network_never_wins(with_model):
    options = {"with_model": with_model}
    sound = walk(faster, **options)
    assert sound.lr > 0.5
    dead = walk(faster, grad=lambda rate: 1e-3 * (rate < 0.5), **options)
    assert race_is_over(dead)
    assert 0.1 < dead.lr < 0.5
    assert "dead" in dead.windows[0].reason


@pytest.mark.parametrize(
    ("bad", "when"), [(NAN, 0), (NAN, 1), (NAN, 29), (float("inf"), 0), (1e6, 1), (1e6, 12)]
)
def test_a_rate_that_breaks_down_never_wins(bad, when):
    def curve(rate, step):
        return bad if rate > 0.5 and step >= when else faster(rate, step)

    controller = walk(curve)
    assert race_is_over(controller)
    assert 0.1 < controller.lr < 0.5
    assert "diverged" in controller.windows[0].reason


def test_a_loss_that_rises_and_stays_leads_down():
    """A network that normalises its inputs does not diverge: its loss stays at a higher level."""

    def curve(rate, step):
        noise = 0.2 * float(np.sin(37.0 * step**2))
        return (3.5 if rate > 1e-3 and step else faster(1e3 * rate, step)) + noise

    controller = walk(curve, lr=10.0)
    assert race_is_over(controller)
    assert 1e-4 < controller.lr < 1e-3
    assert "rises" in controller.windows[0].reason


def test_where_no_rate_holds_the_run_stops():
    model = nn.Linear(3, 3)
    controller = ExpTest(torch.optim.SGD(model.parameters(), lr=1.0), total_steps=STEPS)
    kinds = [controller.step(NAN).kind for _ in range(60)]
    assert kinds[-1] == "stop"


# ---------------------------------------------------------------- what it costs


CURVES = {
    "flat": lambda rate, step: 2.3,
    "noise": lambda rate, step: 2.3 + 0.3 * float(np.sin(37.0 * step**2)),
    "always higher": lambda rate, step: 1.0 + float(np.exp(-step * rate**0.02 / 100.0)),
    "always lower": lambda rate, step: 2.0 + step * rate**0.1,
}


@pytest.mark.parametrize("total_steps", [92, 200, 600, 5000])
@pytest.mark.parametrize("name", CURVES)
def test_a_race_takes_at_most_35_percent_of_the_steps(name, total_steps):
    controller = walk(CURVES[name], total_steps=total_steps)
    assert race_is_over(controller)
    assert controller.steps <= 0.35 * total_steps


def test_losses_are_read_at_most_twice_a_probe():
    loop = Loop("mlp", "sgd", 2.2e-4)
    loop.step()
    recorder, reads = loop.controller._recorder, []
    values = recorder.values
    recorder.values = lambda: reads.append(loop.count) or values()
    while not race_is_over(loop.controller):
        loop.step()
    assert len(probes(loop.controller)) >= 5
    assert len(reads) <= 2 * len(probes(loop.controller))


# ---------------------------------------------------------------- the moves


def curve_of(fall, steps=45, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return Probe(np.exp(-fall * np.arange(steps)) + noise * rng.standard_normal(steps))


LOOP = RaceSettings(900, most=0.35, first_rung=0, leaps=True, replays=False, tail=0.0)


def course(settings, probe_of):
    """Rungs in the order in which they are tried, and the winner."""
    shown, spent, rungs = {}, 0, []
    while isinstance(move := next_move(settings, shown, spent), Order):
        shown[move.rung] = probe = probe_of(move.rung, move.steps)
        spent += probe.losses.size
        rungs.append(move.rung)
    assert isinstance(move, Winner)
    return rungs, move.rung


def peaked(best):
    def probe_of(rung, steps):
        if rung < best - 1:
            return Probe(np.array([1.0, NAN]), "diverged")
        return curve_of(0.05 * 0.33 ** abs(rung - best), steps)

    return probe_of


@pytest.mark.parametrize("best", [-11, -8, -5, -2, -1, 0, 1, 4, 9, 20])
def test_strides_double_and_gaps_are_halved(best):
    rungs, winner = course(LOOP, peaked(best))
    assert abs(winner - best) <= 1
    assert rungs[0] == 0
    assert len(rungs) == len(set(rungs))
    assert len(rungs) <= 12


def test_without_leaps_rungs_are_tried_one_by_one():
    rungs, _ = course(RaceSettings(900, tail=0.0), peaked(5))
    assert rungs[:3] == [0, 1, 2]
    assert sorted(set(rungs)) == list(range(min(rungs), max(rungs) + 1))


def test_what_noise_hides_does_not_end_at_a_lower_rate():
    """Unpaired, level rungs are no reason to go down: the smaller loss wins."""
    shown = {0: curve_of(0.02, noise=0.2, seed=1), 1: curve_of(0.012, noise=0.2, seed=2)}
    shown |= {-1: Probe(np.array([1.0, NAN]), "diverged"), 2: curve_of(0.004, noise=0.2, seed=3)}
    assert next_move(LOOP, shown) == Winner(0, "better than the rungs beside it")


def test_a_top_that_is_not_shown_to_be_worse_is_looked_above():
    shown = {0: curve_of(0.012, noise=0.2, seed=1), -1: curve_of(0.010, noise=0.2, seed=2)}
    assert next_move(LOOP, shown) == Order(-3, 45)


def test_more_steps_cost_all_of_them_where_batches_are_not_replayed():
    flat = {rung: Probe(np.full(45, 2.3)) for rung in (0, 1, 2)}
    flat[-1] = Probe(np.array([2.3, NAN]), "diverged")
    assert next_move(LOOP, flat, spent=225) == Order(0, 90)
    assert isinstance(next_move(LOOP, flat, spent=226), Winner)
    replayed = RaceSettings(900, most=0.35, tail=0.0)
    assert next_move(replayed, flat, spent=270) == Order(0, 90)
    assert isinstance(next_move(replayed, flat, spent=271), Winner)


@pytest.mark.parametrize("seed", range(20))
def test_hopeless_losses_are_found_afterwards_too(seed):
    rng = np.random.default_rng(seed)
    losses = np.abs(1.0 + np.cumsum(rng.standard_normal(30)))
    losses[rng.integers(30)] = NAN if seed % 5 == 0 else 1.0
    known = any(hopeless(losses[:k].tolist()) for k in range(1, 31))
    assert was_hopeless(losses) == known


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("cut", [1, 14, 15, 16, 29, 30, 31, 100, 140, 400, 431])
def test_a_race_that_was_saved_goes_on_exactly(cut):
    """Cuts fall before, at and after half a probe, at its end, in later ones and in annealing."""
    straight = Loop("mlp", "momentum", 2.4e-3)
    whole = straight.run()
    assert probes(straight.controller)[-1].stop > 140
    early = Loop("mlp", "momentum", 2.4e-3)
    first = early.run(cut)
    state = early.state()
    early.run(cut + 40)  # the checkpoint shares no memory with the run
    late = Loop("mlp", "momentum", 0.7, seed=9)
    late.load(state, cut)
    second = late.run()
    assert repr(first + second) == repr(whole)
    assert repr(late.controller.windows) == repr(straight.controller.windows)
    for a, b in zip(late.weights(), straight.weights(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- when there is one


def make(**options):
    return ExpTest(torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1), **options)


def is_racing(controller):
    return controller.state_dict()["race"] is not None


def scheduled(**options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    return ExpTest(optimizer, schedulers=scheduler, **options)


def test_rates_are_raced_where_they_can_be():
    trial = optuna.create_study().ask()
    assert is_racing(make(total_steps=92))
    assert is_racing(make(total_steps=92, race=True))
    assert not is_racing(make(total_steps=91))
    assert not is_racing(make())
    assert not is_racing(make(total_steps=900, race=False))
    assert not is_racing(make(total_steps=900, mode="paper"))
    assert not is_racing(make(total_steps=900, raced=True))
    assert not is_racing(make(total_steps=900, trial=trial))
    assert not is_racing(scheduled(total_steps=900))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"race=True needs total_steps, got None: pass"),
        ({"total_steps": 900, "mode": "paper"}, r"race=True needs mode='robust', got 'paper'"),
        ({"total_steps": 91}, r"two probes of 16 steps in 35% of total_steps, got total_steps=91"),
        ({"total_steps": 900, "raced": True}, r"race=True does not go with raced: leave raced out"),
    ],
)
def test_a_race_that_cannot_be_is_an_error(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make(race=True, **options)


def test_a_race_needs_rates_that_nobody_else_moves():
    with pytest.raises(InvalidArgumentError, match="does not go with schedulers"):
        scheduled(total_steps=900, race=True)
    with pytest.raises(InvalidArgumentError, match="does not go with trial"):
        make(total_steps=900, race=True, trial=optuna.create_study().ask())


def test_rates_do_not_fall_during_a_race_and_nobody_lowers_them():
    controller = walk(faster, lr=1e-3, anneal=1.0)
    raced = probes(controller)
    rungs = [np.log(w.lr / 1e-3) / np.log(0.33) for w in raced]
    assert rungs == pytest.approx([round(rung) for rung in rungs], abs=1e-6)
    racing = walk(faster, lr=1e-3, steps=10)
    assert racing.lower("validation rises").window is None
    assert racing.lr == 1e-3


def test_groups_keep_their_ratios_in_a_race():
    weights = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 4e-3}]
    optimizer = torch.optim.SGD(groups, lr=1e-3)
    controller = ExpTest(optimizer, total_steps=STEPS)
    since, seen = 0, set()
    while not race_is_over(controller):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(4.0 * first)
        seen.add(first > 1e-3)
        kind = controller.step(faster(first, since)).kind
        since = 0 if kind == "restart" else since + 1
    assert seen == {False, True}


def test_a_winner_that_diverges_later_restarts_one_rung_lower():
    controller = walk(faster, lr=1e-3)
    won = controller.lr
    for step in range(5):
        controller.step(faster(won, step))
    assert controller.step(NAN).kind == "restart"
    assert controller.lr == pytest.approx(0.33 * won)
    for step in range(100):
        controller.step(faster(controller.lr, step))
    assert controller.phase == "training"
    assert controller.lr == pytest.approx(0.33 * won)
