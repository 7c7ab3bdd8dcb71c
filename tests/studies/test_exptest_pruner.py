"""ExpTestPruner: the suites for pruners, and its two sources with equal verdicts."""

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import nn

from lrsearch.errors import InvalidArgumentError
from lrsearch.studies.attributes import WINDOW_PREFIX
from lrsearch.studies.exptest_pruner import ExpTestPruner
from lrsearch.testing import CurvePrunerTestCase, PrunerTestCase
from lrsearch.training.exptest import ExpTest


class TestRobust(PrunerTestCase, CurvePrunerTestCase):
    @pytest.fixture
    def pruner(self):
        return ExpTestPruner


class TestPaper(PrunerTestCase, CurvePrunerTestCase):
    @pytest.fixture
    def pruner(self):
        return lambda: ExpTestPruner(mode="paper", alpha=0.01)


def trial_of(losses, *, lr=0.05, spacing=1, name="lr", attributes=None):
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING,
        params={name: lr},
        distributions={name: FloatDistribution(1e-6, 10.0)},
        intermediate_values={spacing * i: float(x) for i, x in enumerate(losses)},
        user_attrs=attributes or {},
    )


def decay(n, seed=0, noise=0.02):
    rng = np.random.default_rng(seed)
    return 0.3 + 2.0 * np.exp(-5.0 * np.arange(n) / n) + noise * rng.standard_normal(n)


CURVES = {
    "decay": lambda rng: decay(300),
    "flat": lambda rng: 2.3 + 0.02 * rng.standard_normal(300),
    "rise": lambda rng: 2.3 + 0.01 * np.arange(300) + 0.02 * rng.standard_normal(300),
    "shoulder": lambda rng: (
        np.concatenate([np.full(80, 2.3), decay(220)]) + 0.02 * rng.standard_normal(300)
    ),
    "explosion": lambda rng: np.exp(0.1 * np.arange(300)),
    "nan": lambda rng: np.where(np.arange(300) == 20, np.nan, decay(300)),
    "noise": lambda rng: 2.3 + rng.standard_normal(300),
}


@pytest.mark.parametrize("mode", ["robust", "paper"])
@pytest.mark.parametrize("lr", [0.03, 0.1, 1.0])
@pytest.mark.parametrize("name", CURVES)
def test_plain_reports_and_recorded_windows_get_equal_verdicts(name, lr, mode):
    """The same losses, once reported one by one, once through ExpTest; at every step."""
    losses = CURVES[name](np.random.default_rng(1)).tolist()
    pruner = ExpTestPruner(mode=mode)
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    study.enqueue_trial({"lr": lr})
    trial = study.ask()
    trial.suggest_float("lr", 1e-6, 10.0)
    controller = ExpTest(
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=lr),
        trial=trial,
        full_batch=True,
        mode=mode,
    )
    for step, loss in enumerate(losses):
        plain = pruner.prune(study, trial_of(losses[: step + 1], lr=lr))
        try:
            decision = controller.step(loss)
            pruned = False
        except optuna.TrialPruned:
            pruned = True
        assert plain == pruned, f"after {step + 1} losses"
        recorded = study.trials[0]
        if any(key.startswith(WINDOW_PREFIX) for key in recorded.user_attrs):
            assert pruner.prune(study, recorded) == plain
        if pruned or decision.kind == "accept":
            return


def test_windows_count_before_reports():
    pruner, study = ExpTestPruner(), optuna.create_study()
    passed = {"decision": "accept", "reason": "decay", "p": 0.001}
    failed = {"decision": "restart", "reason": "flat", "p": 0.7}
    rise = 1.0 + np.arange(200)
    assert pruner.prune(study, trial_of(rise))
    assert not pruner.prune(study, trial_of(rise, attributes={f"{WINDOW_PREFIX}0": passed}))
    both = {f"{WINDOW_PREFIX}{i}": passed for i in range(10)} | {f"{WINDOW_PREFIX}10": failed}
    assert pruner.prune(study, trial_of(decay(200), attributes=both))
    assert pruner.verdict(trial_of(decay(200), attributes=both)) == (True, "flat", 0.7)


@pytest.mark.parametrize("spacing", [2, 10, 1000])
def test_sparse_reports_are_points_of_a_window_that_much_shorter(spacing):
    """Eq. 52 at 0.002 is 1 197 steps: 120 points at every tenth step."""
    pruner, study = ExpTestPruner(), optuna.create_study()
    curve = 2.3 + 0.01 * np.arange(400)
    window = max(30, min(2000, round(1.0405202 * 2.3 / (0.002 * spacing))))
    if window <= 400:
        assert pruner.prune(study, trial_of(curve[:window], lr=0.002, spacing=spacing))
        assert not pruner.prune(study, trial_of(curve[: window - 1], lr=0.002, spacing=spacing))
    assert not pruner.prune(study, trial_of(decay(400), lr=0.002, spacing=spacing))
    assert pruner.prune(study, trial_of([*decay(5), np.nan], lr=0.002, spacing=spacing))


def test_a_trial_without_a_rate_gets_the_smallest_window():
    pruner, study = ExpTestPruner(lr_name="eta"), optuna.create_study()
    rise = 2.3 + 0.01 * np.arange(30)
    assert pruner.prune(study, trial_of(rise, lr=1e-4))
    assert not pruner.prune(study, trial_of(rise[:29], lr=1e-4))
    assert not pruner.prune(study, trial_of(rise, lr=1e-4, name="eta"))


def test_the_level_is_the_users():
    study, rng = optuna.create_study(), np.random.default_rng(4)
    curve = np.exp(-np.arange(60) / 20.0) + 0.8 * rng.standard_normal(60)
    _, _, pvalue = ExpTestPruner(mode="paper").verdict(trial_of(curve, lr=0.02))
    assert 1e-6 < pvalue < 0.9
    strict, loose = (ExpTestPruner(mode="paper", alpha=pvalue * f) for f in (0.99, 1.01))
    assert strict.prune(study, trial_of(curve, lr=0.02))
    assert not loose.prune(study, trial_of(curve, lr=0.02))


def test_two_pruned_reasons_are_told_apart():
    pruner = ExpTestPruner()
    pruned, reason, pvalue = pruner.verdict(trial_of([]))
    assert (pruned, reason.split()[0], pvalue) == (False, "too", 1.0)
    assert pruner.verdict(trial_of([1.0, np.nan]))[:2] == (True, "diverged")
    assert pruner.verdict(trial_of(2.0 + 0.1 * np.arange(90)))[:2] == (True, "rising")
    assert pruner.verdict(trial_of(decay(90)))[:2] == (False, "decay")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"mode": "x"}, "mode"),
        ({"lr_name": ""}, "lr_name must be a parameter's name, got ''"),
        ({"lr_name": 3}, "lr_name must be a parameter's name, got 3"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ExpTestPruner(**options)


def test_with_full_batch_losses_a_jump_above_the_start_is_a_reason_to_prune():
    steps = np.arange(120)
    losses = 0.3 + 2.0 * np.exp(-0.08 * steps)
    losses[2] = 4.0
    trial = trial_of(losses)
    assert not ExpTestPruner().prune(None, trial)
    assert ExpTestPruner(full_batch=True).prune(None, trial)
