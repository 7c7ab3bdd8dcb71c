"""The joint search: every gradient step is counted; the target was there before the searches."""

from __future__ import annotations

from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from reproducing import Called, assert_files, assert_goes_on
from torch.optim.optimizer import register_optimizer_step_post_hook

from experiments.harness.reproduction import Results
from experiments.joint import searching
from experiments.joint.reproduction import REFERENCE, TARGETS, TASKS, steps_table, targets
from experiments.joint.searching import (
    METHODS,
    RACE,
    TPE,
    Account,
    objective,
    random_reference,
    run_study,
)
from experiments.joint.targets import best_after, paired_ratio, steps_to
from lrsearch import Split, TaskData
from lrsearch.studies.attributes import WINDOW_PREFIX


def three_classes() -> TaskData:
    generator = torch.Generator().manual_seed(0)

    def split(rows: int) -> Split:
        inputs = torch.randn(rows, 6, generator=generator)
        return Split(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long())

    return TaskData(split(120), split(40), split(40), outputs=3, name="toy")


DATA = three_classes()


@pytest.fixture
def taken() -> Any:
    """Counts the steps that torch's optimizers take."""
    steps = [0]

    def count(*_: Any) -> None:
        steps[0] += 1

    handle = register_optimizer_step_post_hook(count)
    yield steps
    handle.remove()


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every race that is run."""
    run_race, found = searching.run_race, []

    def noted(*args: Any) -> Any:
        found.append(run_race(*args))
        return found[-1]

    monkeypatch.setattr(searching, "run_race", noted)
    return found


# --- the account -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_gradient_step_is_charged_probes_and_pruned_trials_too(
    method: str, taken: list[int], races: list[Any]
) -> None:
    study, account = run_study(method, DATA, 0, steps=40, budget=600)
    assert len(races) == (len(study.trials) if method == RACE else 0)
    # A race's way to its first rate is one step and some forward passes, charged as thirds.
    first_rates = sum(race.forward_steps - 1 for race in races)
    assert account.steps == taken[0] + first_rates
    assert account.steps >= 600
    states = {trial.state.name for trial in study.trials}
    assert states <= {"COMPLETE", "PRUNED"}
    if method != RACE:
        assert "PRUNED" in states


def test_a_raced_trial_is_pruned_by_hyperband_as_any_other() -> None:
    account = Account()
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.HyperbandPruner(min_resource=2, max_resource=20),
    )
    study.optimize(
        partial(objective, method=RACE, data=DATA, seed=0, steps=40, account=account), n_trials=12
    )
    ended = {
        state.name: [trial for trial in study.trials if trial.state == state]
        for state in optuna.trial.TrialState
    }
    assert ended["PRUNED"]
    assert ended["COMPLETE"]
    longest = max(len(trial.intermediate_values) for trial in ended["COMPLETE"])
    assert min(len(trial.intermediate_values) for trial in ended["PRUNED"]) < longest
    assert account.best <= min(trial.value for trial in ended["COMPLETE"])
    # What ExpTest saw of a trial stands on it.
    assert all(f"{WINDOW_PREFIX}0" in trial.user_attrs for trial in ended["COMPLETE"])


def test_a_search_ends_with_the_trial_that_spends_its_budget() -> None:
    study, account = run_study(TPE, DATA, 0, steps=40, budget=100)
    longer, more = run_study(TPE, DATA, 0, steps=40, budget=200)
    assert len(longer.trials) > len(study.trials)
    assert 100 <= account.steps < 100 + 45
    assert 200 <= more.steps < 200 + 45
    # The shorter search is the longer one's beginning.
    assert more.course[: len(account.course)] == account.course


@pytest.mark.parametrize("method", METHODS)
def test_the_rate_is_a_parameter_of_tpe_or_the_races_alone(method: str, races: list[Any]) -> None:
    study, _ = run_study(method, DATA, 0, steps=40, budget=200)
    others = {"batch_size", "width", "optimizer", "weight_decay"}
    for trial in study.trials:
        assert set(trial.params) == (others if method == RACE else others | {"lr"})
        assert trial.user_attrs.get("race_steps") == (
            races[trial.number].steps if method == RACE else None
        )


@pytest.mark.parametrize("method", [RACE, TPE])
def test_a_seed_says_everything(method: str) -> None:
    courses = [run_study(method, DATA, seed, steps=40, budget=300)[1].course for seed in (3, 3, 4)]
    assert courses[0] == courses[1]
    assert courses[0] != courses[2]


def test_the_course_holds_improvements_alone() -> None:
    account = Account()
    for steps, loss in [(5, 2.0), (9, 2.0), (12, float("nan")), (20, 1.5), (21, inf), (30, 1.0)]:
        account.steps = steps
        account.see(loss, trial=steps // 10)
    assert [(row["step"], row["val_loss"]) for row in account.course] == [
        (5, 2.0),
        (20, 1.5),
        (30, 1.0),
    ]
    assert account.best == 1.0


# --- the target ------------------------------------------------------------------------------


def test_the_reference_takes_each_configuration_at_its_best_rate_of_the_grid() -> None:
    grid = (1e-4, 1e-2, 1.0)
    options: dict[str, Any] = {"steps": 40, "configurations": 3}
    rows = random_reference(DATA, 7, rates=grid, **options)
    alone = [random_reference(DATA, 7, rates=(rate,), **options) for rate in grid]
    for number, row in enumerate(rows):
        losses = [each[number]["val_loss"] for each in alone]
        assert row["val_loss"] == min(losses)
        assert row["lr"] == grid[int(np.argmin(losses))]
    assert len({row["weight_decay"] for row in rows}) == 3


def test_the_targets_are_quantiles_of_the_reference_whatever_the_searches_found() -> None:
    losses = np.arange(1.0, 12.0)
    rows = pd.DataFrame(
        [{"task": "a", "method": REFERENCE, "val_loss": loss} for loss in losses]
        + [{"task": "a", "method": RACE, "val_loss": 1e-9}]
        + [{"task": "b", "method": REFERENCE, "val_loss": 5.0}]
    )
    found = targets(rows)
    assert [found["a", name] for name in TARGETS] == [6.0, 3.5, 2.0]
    assert {found["b", name] for name in TARGETS} == {5.0}


def test_a_target_is_reached_at_the_first_loss_that_is_no_larger() -> None:
    course = [{"step": 10, "val_loss": 3.0}, {"step": 25, "val_loss": 2.0}]
    assert steps_to(course, 3.5, 100) == 10.0
    assert steps_to(course, 2.0, 100) == 25.0
    assert steps_to(course, 2.0, 25) == 25.0
    assert steps_to(course, 2.0, 24) == inf
    assert steps_to(course, 1.9, 100) == inf
    assert steps_to([], 1.0, 100) == inf


def test_the_steps_of_a_search_are_read_from_its_own_course() -> None:
    rows = pd.DataFrame(
        [
            {"task": "a", "method": REFERENCE, "seed": 1000, "val_loss": 1.0},
            {"task": "a", "method": RACE, "seed": 0, "val_loss": 0.5},
            {"task": "a", "method": TPE, "seed": 0, "val_loss": 2.0},
        ]
    )
    epochs = pd.DataFrame(
        [
            {"run": 1, "step": 7, "val_loss": 1.5},
            {"run": 1, "step": 12, "val_loss": 0.5},
            {"run": 2, "step": 3, "val_loss": 2.0},
        ]
    )
    table = steps_table(Results(rows, [], epochs), 100)
    assert len(table) == 2 * len(TARGETS)
    assert set(table.loc[table["method"] == RACE, "steps"]) == {12.0}
    assert set(table.loc[table["method"] == TPE, "steps"]) == {inf}


def test_the_best_loss_after_so_many_steps() -> None:
    course = [{"step": 10, "val_loss": 3.0}, {"step": 25, "val_loss": 2.0}]
    found = best_after(course, np.array([0.0, 9.0, 10.0, 24.0, 25.0, 99.0]))
    np.testing.assert_array_equal(found, [np.nan, np.nan, 3.0, 3.0, 2.0, 2.0])


# --- the ratio -------------------------------------------------------------------------------


def test_the_ratio_is_of_pairs_and_has_no_width_where_all_agree() -> None:
    second = np.array([[100.0, 400.0, 50.0], [10.0, 20.0, 900.0]])
    found = paired_ratio(second / 2.0, second, 1000)
    assert found == pytest.approx({"ratio": 0.5, "low": 0.5, "high": 0.5})


def test_a_search_that_fails_counts_as_its_budget() -> None:
    found = paired_ratio(np.array([[250.0, 250.0]]), np.array([[inf, inf]]), 1000)
    assert found["ratio"] == pytest.approx(0.25)
    assert paired_ratio(np.array([[inf]]), np.array([[inf]]), 1000)["ratio"] == 1.0


# --- the whole -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_quick_joint_search_has_every_method_and_target(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Called("joint-search", tmp_path / "out", capsys)
    text = call("--no-tracking")
    assert "600 gradient steps a study (probes and pruned trials included)" in text
    tables = {"targets", "steps", "ratios", "spent", "reference"}
    assert_files(call, tables, {"joint"})
    steps = call.table("steps")
    assert set(steps[["task", "target", "method"]].itertuples(index=False, name=None)) == {
        (task, target, method) for task in TASKS for target in TARGETS for method in METHODS
    }
    # A harder target is not reached sooner.
    wide = steps.pivot(index=["task", "method"], columns="target", values="steps")
    assert (wide["best half"] <= wide["best quarter"]).all()
    assert (wide["best quarter"] <= wide["best tenth"]).all()
    monkeypatch.setattr(
        "experiments.joint.reproduction.run_study",
        lambda *_, **__: pytest.fail("a finished cell was measured again"),
    )
    assert_goes_on(call, monkeypatch, tables)
