"""Searches that are replayed on a bank's runs."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import optuna
import pytest
import torch

from experiments.bench.bank import RATES, BankRuns, Measures, train_bank
from experiments.bench.replayed import (
    constant_guess,
    expected_best,
    grid,
    random_search,
    tpe_hyperband,
    tpe_median,
    tpe_trials,
    worth_trials,
)
from experiments.bench.tasks import make_task
from lrsearch import Split, TaskData
from lrsearch.errors import InvalidArgumentError

PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=20),
}
TPE = {"median": tpe_median, "hyperband": tpe_hyperband}


def made_up(seed=0, rates=25, checks=20, lost=()):
    """Runs of two seeds that fall towards a loss of their own, some of them not finite."""
    rng = np.random.default_rng(seed)
    final = rng.random((2, rates)).astype(np.float32)
    fall = np.linspace(2.0, 0.0, checks) + rng.normal(size=(2, rates, checks)) * 0.3
    curves = (final[..., None] + fall).astype(np.float32)
    curves[..., -1] = final
    for index in lost:
        final[:, index] = np.nan
        curves[:, index, checks // 2 :] = np.nan

    def measures():
        return Measures(final.copy(), rng.random((2, rates)).astype(np.float32))

    checked = 17 * np.arange(1, checks + 1)
    return BankRuns(
        rates=np.array(RATES[:rates], np.float32),
        seeds=np.arange(2),
        curves=np.zeros((2, rates, checked[-1]), np.float32),
        checked=checked,
        checks=curves,
        train=measures(),
        validation=measures(),
        test=measures(),
    )


def test_the_grid_is_nine_rates_over_the_banks_range_chosen_on_validation():
    runs = made_up()
    found = grid(runs, 1)
    tried = range(0, 25, 3)
    best = min(tried, key=lambda index: runs.validation.loss[1, index])
    assert len(tried) == 9
    assert found.lr == pytest.approx(RATES[best], rel=1e-6)
    assert found.steps == 9 * 340
    assert found.val_loss == runs.validation.loss[1, best]
    assert found.val_metric == runs.validation.metric[1, best]
    assert found.test_metric == runs.test.metric[1, best]
    assert found.train_loss == runs.train.loss[1, best]
    assert not found.diverged


def test_a_search_that_finds_no_finite_run_has_diverged_and_pays():
    found = grid(made_up(lost=range(25)), 0)
    assert found.diverged
    assert found.steps == 9 * 340


def test_random_search_draws_distinct_rates_by_its_seed():
    runs = made_up(lost=[3, 4])
    assert random_search(runs, 0, 25, 1).val_loss == np.nanmin(runs.validation.loss[0])
    assert random_search(runs, 0, 4, 7) == random_search(runs, 0, 4, 7)
    assert len({random_search(runs, 0, 1, seed).lr for seed in range(200)}) == 25
    assert random_search(runs, 0, 4, 7).steps == 4 * 340
    with pytest.raises(InvalidArgumentError, match="trials must be at most the 25 rates"):
        random_search(runs, 0, 26, 0)


@pytest.mark.parametrize("name", TPE)
def test_a_replayed_study_reads_no_check_beyond_where_it_was_pruned(name):
    runs = made_up(lost=[20, 21, 22, 23, 24])
    trials = tpe_trials(runs, 0, PRUNERS[name](), 3)
    assert len(trials) == 20
    pruned = [trial for trial in trials if not trial.completed]
    assert pruned
    assert len(pruned) < len(trials)
    read = np.zeros(runs.checks.shape[1:], bool)
    for trial in trials:
        read[trial.index, : trial.checks] = True
    # What was not read would win every comparison.
    tempting = runs.checks.copy()
    tempting[0][~read] = -1e6
    other_seed = runs.checks.copy()
    other_seed[1] = -1e6
    for checks in (tempting, other_seed):
        changed = replace(runs, checks=checks)
        assert tpe_trials(changed, 0, PRUNERS[name](), 3) == trials
    found = TPE[name](runs, 0, 3)
    assert TPE[name](replace(runs, checks=tempting), 0, 3) == found
    assert found.steps == sum(17 * trial.checks for trial in trials)
    completed = {trial.index for trial in trials if trial.completed}
    assert found.val_loss == min(runs.validation.loss[0, list(completed)])


@pytest.mark.parametrize("name", TPE)
def test_a_replayed_study_depends_on_its_seed_alone(name):
    runs = made_up()
    found = [TPE[name](runs, 0, seed) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1]
    assert len({each.steps for each in found}) > 1


def test_a_replayed_study_asks_what_optuna_would_on_the_same_objective():
    """Held against a study that is written as a user would, with rates for an index."""
    runs = made_up(4)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=5), pruner=optuna.pruners.MedianPruner()
    )

    def objective(trial):
        index = trial.suggest_int("index", 0, 24)
        for step, loss in enumerate(runs.checks[0, index]):
            trial.report(float(loss), step)
            if step < 19 and trial.should_prune():
                raise optuna.TrialPruned
        return float(runs.validation.loss[0, index])

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study.optimize(objective, n_trials=20)
    finally:
        optuna.logging.set_verbosity(verbosity)
    found = tpe_median(runs, 0, 5)
    assert found.val_loss == pytest.approx(study.best_value)
    assert found.steps == sum(17 * len(trial.intermediate_values) for trial in study.trials)


def test_a_study_without_a_completed_trial_has_diverged_and_pays_to_where_it_was_lost():
    found = tpe_median(made_up(lost=range(25)), 0, 0)
    assert found.diverged
    assert found.reason == "no trial was completed"
    assert found.steps == 20 * 17 * 11  # the loss is lost at the eleventh check


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("lost", [(), (0, 5)])
def test_the_expected_best_is_the_mean_over_every_choice_of_k(direction, lost):
    runs = made_up(1, rates=8, lost=lost)
    for index in lost:
        runs.test.metric[:, index] = np.nan
    runs.validation.loss[0, 3] = runs.validation.loss[0, 6]  # a tie
    guess = 0.3
    worse = np.minimum if direction == "minimize" else np.maximum
    values = np.nan_to_num(worse(runs.test.metric[0].astype(float), guess), nan=guess)
    losses = np.nan_to_num(runs.validation.loss[0], nan=np.inf)
    found = expected_best(runs, 0, direction, guess)
    for k in range(1, 9):
        picks = [min(tried, key=lambda i: (losses[i], i)) for tried in combinations(range(8), k)]
        assert found[k - 1] == pytest.approx(np.mean([values[pick] for pick in picks]), rel=1e-12)


def test_worth_is_the_least_number_of_trials_that_do_as_well():
    rising, falling = np.array([0.5, 0.7, 0.9]), np.array([3.0, 2.0, 1.0])
    assert worth_trials(rising, 0.5, "maximize") == 1.0
    assert worth_trials(rising, 0.71, "maximize") == 3.0
    assert worth_trials(rising, 0.95, "maximize") == np.inf
    assert worth_trials(falling, 2.5, "minimize") == 2.0
    assert worth_trials(falling, 0.5, "minimize") == np.inf
    with pytest.raises(InvalidArgumentError, match="direction must be one of"):
        worth_trials(rising, 0.5, "max")


def test_a_constant_guess_knows_the_training_targets_alone():
    classes = make_task("digits-mlp", "none")
    train = Split(torch.zeros(4, 2), torch.tensor([1, 2, 2, 0]))
    test = Split(torch.zeros(4, 2), torch.tensor([0, 0, 0, 2]))
    assert constant_guess(classes, TaskData(train, train, test, outputs=3)) == 0.25
    values = make_task("diabetes-mlp", "none")
    train = Split(torch.zeros(2, 2), torch.tensor([[1.0], [3.0]]))
    test = Split(torch.zeros(2, 2), torch.tensor([[2.0], [5.0]]))
    assert constant_guess(values, TaskData(train, train, test, outputs=1)) == 4.5


def test_a_bank_that_was_trained_can_be_searched():
    task = replace(make_task("wine-linear", "none", "sgd"), epochs=4)
    data = task.data(0)
    runs = train_bank(task, [data], [0])
    guess = constant_guess(task, data)
    every = [grid(runs, 0), random_search(runs, 0, 5, 0), tpe_median(runs, 0, 0, trials=10)]
    for found in [*every, tpe_hyperband(runs, 0, 0, trials=10)]:
        assert not found.diverged
        assert found.test_metric > guess
    expected = expected_best(runs, 0, task.direction, guess)
    assert expected[-1] == pytest.approx(random_search(runs, 0, 25, 0).test_metric)
