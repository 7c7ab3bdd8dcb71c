"""The end of a run: the rate falls to 0, by the formula, on the record, and across a kill."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

from lrsearch.controllers.exptest import ExpTestSettings
from lrsearch.errors import InvalidArgumentError
from lrsearch.training.exptest import ANNEAL, STAIRS, ExpTest

TOTAL, RATE = 500, 0.1


class Kept:
    """What a run tells its tracker of its rate."""

    def __init__(self):
        self.rates = {}

    def log_metrics(self, metrics, step, *, timestamp=None):
        if "train/lr" in metrics:
            assert step not in self.rates or self.rates[step] == metrics["train/lr"]
            self.rates[step] = metrics["train/lr"]

    def log_steps(self, losses, start, lr):
        pass


class Run:
    """A run whose losses are made up; two parameter groups."""

    def __init__(self, losses, *, scheduled=False, **options):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        groups = [
            {"params": [self.model.weight], "lr": RATE},
            {"params": [self.model.bias], "lr": 10.0 * RATE},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9)
        self.kept = Kept()
        if scheduled:
            options["schedulers"] = torch.optim.lr_scheduler.ConstantLR(self.optimizer, 1.0)
        options = {"total_steps": TOTAL, "raced": True} | options
        self.controller = ExpTest(self.optimizer, model=self.model, tracker=self.kept, **options)
        self.losses = losses
        self.rates, self.decisions = [], []
        self.count = 0

    def walk(self, until):
        """Take steps; keeps the rate that each met."""
        while self.count < until:
            self.rates.append([group["lr"] for group in self.optimizer.param_groups])
            generator = torch.Generator().manual_seed(self.count)
            self.model(torch.randn(8, 3, generator=generator)).square().mean().backward()
            self.optimizer.step()
            self.decisions.append(self.controller.step(float(self.losses[self.count])))
            self.optimizer.zero_grad()
            self.count += 1
        return self


def falling(noise=0.01):
    return np.exp(-0.005 * np.arange(TOTAL)) + noise * np.random.default_rng(0).uniform(size=TOTAL)


def plateau():
    """Down at first, and then no further: the rate decays."""
    steps = np.arange(TOTAL)
    return np.exp(-0.1 * steps) + 0.5 + 0.01 * np.random.default_rng(0).standard_normal(TOTAL)


@pytest.mark.parametrize("anneal", [None, 1.0, 0.25])
def test_the_rate_falls_by_a_line_to_the_last_step_in_no_more_stairs_than_are_allowed(anneal):
    run = Run(falling(), anneal=anneal).walk(TOTAL)
    share = ANNEAL if anneal is None else anneal
    begin = TOTAL * (1.0 - share)
    rates = np.array(run.rates)
    assert all(decision.kind != "decay" for decision in run.decisions)
    np.testing.assert_allclose(rates[:, 1], 10.0 * rates[:, 0], rtol=1e-12)
    steps = np.arange(TOTAL)
    line = np.minimum(1.0, (TOTAL - steps) / (share * TOTAL))
    stair = TOTAL // STAIRS / (share * TOTAL)
    # Each step meets the line, or what it was less than a stair ago.
    shown = rates[:, 0] / RATE
    assert np.all(shown >= line - 1e-9)
    assert np.all(shown <= np.minimum(1.0, line + stair) + 1e-9)
    assert np.all(rates[: int(begin), 0] == RATE)
    assert np.all(np.diff(shown) <= 0.0)
    looks = len(run.controller.windows)
    assert len(np.unique(shown)) <= share * STAIRS + 2 + looks
    assert shown[-1] <= 2.0 * stair
    assert run.decisions[-1].kind == "stop"


def test_decays_and_the_line_are_multiplied_and_none_comes_once_the_rate_falls_by_itself():
    run = Run(plateau(), anneal=0.3).walk(TOTAL)
    decays = [step for step, d in enumerate(run.decisions) if d.kind == "decay"]
    assert decays
    assert max(decays) < 0.7 * TOTAL
    steps = np.arange(TOTAL)
    factor = np.array([0.33 ** sum(at < step for at in decays) for step in steps])
    line = np.minimum(1.0, (TOTAL - steps) / (0.3 * TOTAL))
    shown = np.array(run.rates)[:, 0] / (RATE * factor)
    stair = TOTAL // STAIRS / (0.3 * TOTAL)
    assert np.all(shown >= line - 1e-9)
    assert np.all(shown <= np.minimum(1.0, line + stair) + 1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"anneal": 0.0},
        {"total_steps": None},
        {"scheduled": True},
        {"mode": "paper", "raced": False},
    ],
    ids=str,
)
def test_the_rate_is_left_alone_where_that_is_asked_or_no_end_or_shape_of_it_is_known(options):
    run = Run(falling(), **options).walk(TOTAL)
    assert {rate for rate, _ in run.rates} == {RATE}


def test_the_chart_of_the_rate_is_the_rate_that_each_step_met():
    run = Run(falling()).walk(TOTAL)
    rates = [rate for rate, _ in run.rates]
    assert all(
        run.kept.rates[step] == pytest.approx(rates[step], rel=1e-9) for step in run.kept.rates
    )
    changes = [step for step in range(1, TOTAL) if rates[step] != rates[step - 1]]
    assert len(changes) > 10
    for step in changes:  # before and after each stair, so that the chart has the stairs
        assert {step - 1, step} <= run.kept.rates.keys()


@pytest.mark.parametrize("cut", [299, 300, 301, 307, 350, 433, 499])
@pytest.mark.parametrize("losses", [falling, plateau])
def test_a_run_that_was_saved_in_its_tail_goes_on_exactly(cut, losses):
    whole = Run(losses()).walk(TOTAL)
    early = Run(losses()).walk(cut)
    file = io.BytesIO()
    parts = {"model": early.model, "optimizer": early.optimizer, "exptest": early.controller}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    late = Run(losses())
    late.model.load_state_dict(state["model"])
    late.optimizer.load_state_dict(state["optimizer"])
    late.controller.load_state_dict(state["exptest"])
    late.count = cut
    late.walk(TOTAL)
    assert early.rates + late.rates == whole.rates
    assert repr(early.decisions + late.decisions) == repr(whole.decisions)
    assert torch.equal(late.model.weight, whole.model.weight)
    assert early.kept.rates | late.kept.rates == whole.kept.rates


def test_other_annealing_is_another_run():
    state = Run(falling()).walk(10).controller.state_dict()
    with pytest.raises(InvalidArgumentError, match=r"anneal=0\.4"):
        Run(falling(), anneal=0.2).controller.load_state_dict(state)


@pytest.mark.parametrize("lower_at", [100, 400])
def test_who_asks_for_a_lower_rate_gets_it_before_the_tail_and_in_it(lower_at):
    run = Run(falling()).walk(lower_at)
    before = run.controller.lr
    decision = run.controller.lower("the validation loss rises")
    assert decision.kind == "decay"
    assert decision.reason == "the validation loss rises"
    assert decision.lr == run.controller.lr == pytest.approx(0.33 * before, rel=0.05)
    run.walk(TOTAL)
    assert run.rates[-1][0] <= 0.33 * RATE * 2.0 / (ANNEAL * STAIRS)
    assert run.controller.windows[-1].phase == "training"


def test_the_share_of_the_last_step_is_not_zero_and_bad_settings_are_refused():
    settings = ExpTestSettings(total_steps=100, anneal=0.5)
    assert settings.annealing_from == 50.0
    assert settings.share_at(50) == 1.0
    assert settings.share_at(75) == pytest.approx(0.5)
    assert settings.share_at(99) == settings.share_at(200) == pytest.approx(0.02)
    assert ExpTestSettings(total_steps=100).share_at(99) == 1.0
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(InvalidArgumentError, match="anneal"):
            ExpTestSettings(total_steps=100, anneal=bad)
    with pytest.raises(InvalidArgumentError, match="total_steps"):
        ExpTestSettings(anneal=0.5)
