"""The rates that each method tries, and its parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.methods import (
    GRID_POINTS,
    METHODS,
    PLANNERS,
    TRY_EPOCHS,
    Plan,
    fill_queue,
    make_plan,
    make_study,
)
from lrsearch.errors import InvalidArgumentError, require_choice
from lrsearch.studies import ExpTestPruner, ExpTestSampler, TryPruner


def plan(method: str, *, beta: float = 0.33, trials: int | None = None, seed: int = 0) -> Plan:
    return PLANNERS[method](0.8, ExpTestSettings(beta=beta), seed, trials)


def tried(each: Plan, state: TrialState = TrialState.COMPLETE) -> list[float]:
    study = make_study(each, name=None, storage=None, resume=False)
    fill_queue(study, each)
    rates: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        rates.append(trial.suggest_float("lr", each.low, each.high, log=True))
        if state == TrialState.PRUNED:
            raise optuna.TrialPruned
        return 1.0

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study.optimize(objective, n_trials=each.trials)
    return rates


def test_the_grid_is_nine_log_points_from_three_decades_below_the_bound_to_one_above() -> None:
    rates = sorted(tried(plan("grid")))
    np.testing.assert_allclose(rates, 0.8 * 10.0 ** np.linspace(-3, 1, 9), rtol=1e-12)
    assert len(set(tried(plan("grid", trials=5)))) == 5


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_other_baselines_draw_as_many_rates_from_the_same_range(method: str) -> None:
    rates = tried(plan(method))
    assert len(rates) == GRID_POINTS
    assert 0.8e-3 <= min(rates) < max(rates) <= 8.0
    assert rates == tried(plan(method))
    assert rates != tried(plan(method, seed=1))


@pytest.mark.parametrize("beta", [0.1, 0.33, 0.5, 0.9])
def test_the_ladder_has_budget_for_every_rung_of_six_decades(beta: float) -> None:
    each = plan("exptest", beta=beta)
    rates = tried(each, TrialState.PRUNED)
    np.testing.assert_allclose(rates, 0.8 * beta ** np.arange(len(rates)), rtol=1e-12)
    assert rates[-1] * beta < 0.8e-6 <= rates[-1] * (1 + 1e-9)
    assert len(rates) <= each.trials


def test_only_exptest_drives_the_rate_and_only_tpe_reports_to_a_pruner() -> None:
    plans = {method: plan(method) for method in METHODS}
    assert [name for name, each in plans.items() if each.controlled] == ["exptest"]
    assert [name for name, each in plans.items() if each.reports] == ["tpe"]
    assert [name for name, each in plans.items() if each.renewed] == ["lipschitz"]
    assert isinstance(plans["exptest"].sampler, ExpTestSampler)
    assert isinstance(plans["exptest"].pruner, ExpTestPruner)


def lipschitz(multipliers: tuple[float, ...], *, epochs: int = 30, **options: Any) -> Plan:
    settings = ExpTestSettings()
    return make_plan(
        "lipschitz", 0.8, settings, 0, None, multipliers=multipliers, epochs=epochs, **options
    )


def test_lipschitz_takes_the_start_itself_or_each_multiple_before_the_best() -> None:
    assert tried(lipschitz((1.0,))) == pytest.approx([0.8])
    each = lipschitz((0.1, 1.0))
    assert (each.trials, each.tries, each.reports) == (3, True, True)
    assert isinstance(each.pruner, TryPruner)
    assert tried(each) == pytest.approx([0.08, 0.8, 0.08])  # equal values: the first
    short = lipschitz((0.1, 1.0), epochs=TRY_EPOCHS)
    assert (short.trials, short.tries, short.reports) == (2, False, False)
    assert tried(short) == pytest.approx([0.08, 0.8])


def test_a_guarded_lipschitz_is_exptest_from_the_multiple() -> None:
    each = lipschitz((0.5,), guarded=True)
    assert each.controlled
    assert isinstance(each.sampler, ExpTestSampler)
    assert tried(each, TrialState.PRUNED)[:2] == pytest.approx([0.4, 0.4 * 0.33])


@pytest.mark.parametrize("most", [1, 2])
def test_trials_must_suffice_for_the_tries_and_a_full_run(most: int) -> None:
    with pytest.raises(InvalidArgumentError, match="trials must be at least 3 with 2 multipliers"):
        make_plan("lipschitz", 0.8, ExpTestSettings(), 0, most, multipliers=(0.1, 1.0), epochs=30)


def test_methods_are_the_keys_of_the_planners_and_minimise() -> None:
    assert tuple(PLANNERS) == METHODS
    for method in METHODS:
        require_choice("method", method, METHODS)
        study = make_study(plan(method), name=None, storage=None, resume=False)
        assert study.direction == optuna.study.StudyDirection.MINIMIZE
