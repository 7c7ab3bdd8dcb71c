"""Tries of a few multipliers: LipschitzSampler(tries=True) and TryPruner, in plain Optuna."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner, HyperbandPruner
from optuna.trial import FrozenTrial, TrialState

from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.studies import LipschitzSampler, TryPruner
from lrsearch.studies.attributes import MULTIPLIER
from lrsearch.testing import PrunerTestCase

MULTIPLIERS = (0.1, 0.5, 1.0)
EPOCHS = 20


def sampler(**options: Any) -> LipschitzSampler:
    return LipschitzSampler(2.0, **({"multipliers": MULTIPLIERS, "tries": True} | options))


@pytest.fixture(params=["memory", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield optuna.storages.InMemoryStorage()
        return
    kept = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    try:
        yield kept
    finally:
        kept.engine.dispose()


def make_study(storage: Any = None, *, direction: str = "minimize", **options: Any) -> optuna.Study:
    return optuna.create_study(
        storage=storage,
        sampler=sampler(**options),
        pruner=TryPruner(5),
        direction=direction,
        study_name="tried",
        load_if_exists=True,
    )


def objective(trial: optuna.Trial, sign: float = 1.0) -> float:
    """A loss whose best rate is 0.25, multiplier 0.5 over 2."""
    rate = trial.suggest_float("lr", 1e-6, 10.0, log=True)
    loss = math.inf
    for epoch in range(EPOCHS):
        loss = sign * (abs(math.log(rate / 0.25)) + 1.0 / (1 + epoch))
        trial.report(loss, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_each_multiplier_is_tried_for_five_epochs_and_the_best_trained_in_full(
    storage: Any, direction: str
) -> None:
    study = make_study(storage, direction=direction)
    sign = 1.0 if direction == "minimize" else -1.0
    study.optimize(lambda trial: objective(trial, sign), n_trials=5)
    trials = study.trials
    assert [trial.params["lr"] for trial in trials] == [0.05, 0.25, 0.5, 0.25, 0.25]
    assert [len(trial.intermediate_values) for trial in trials] == [5, 5, 5, EPOCHS, EPOCHS]
    assert [trial.state.name for trial in trials] == ["PRUNED"] * 3 + ["COMPLETE"] * 2
    assert [trial.user_attrs[MULTIPLIER] for trial in trials] == [
        *({"multiplier": each, "try": place} for place, each in enumerate(MULTIPLIERS)),
        *([{"multiplier": 0.5, "try": None}] * 2),
    ]


def test_a_fresh_sampler_goes_on_where_another_stopped(storage: Any) -> None:
    for _ in range(4):
        make_study(storage).optimize(objective, n_trials=1)
    rates = [trial.params["lr"] for trial in make_study(storage).trials]
    assert rates == [0.05, 0.25, 0.5, 0.25]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_too(duplicate: Callable[[Any], Any]) -> None:
    study = make_study()
    for _ in range(4):
        study.sampler = duplicate(study.sampler)
        study.optimize(objective, n_trials=1)
    assert study.trials[-1].params["lr"] == 0.25


def ask(study: optuna.Study) -> tuple[optuna.Trial, float]:
    trial = study.ask()
    return trial, trial.suggest_float("lr", 1e-6, 10.0, log=True)


def test_trials_that_run_at_once_try_different_multipliers(storage: Any) -> None:
    study = make_study(storage)
    born = [study.ask() for _ in range(3)]
    # They ask for their rates in another order than they were born.
    rates = {t.number: t.suggest_float("lr", 1e-6, 10.0, log=True) for t in reversed(born)}
    assert rates == {0: 0.05, 1: 0.25, 2: 0.5}


def test_threads_try_each_multiplier_once() -> None:
    study = make_study()
    study.optimize(objective, n_trials=8, n_jobs=4)
    places = [trial.user_attrs[MULTIPLIER]["try"] for trial in study.trials]
    # A trial that begins before any try has ended is one more try.
    assert {0, 1, 2} <= set(places)
    assert all(
        trial.params["lr"] == trial.user_attrs[MULTIPLIER]["multiplier"] / 2.0
        for trial in study.trials
    )


def test_a_try_that_failed_loses_and_is_not_tried_again() -> None:
    study = make_study()
    for _ in range(3):
        trial, rate = ask(study)
        if rate == 0.25:  # the best
            study.tell(trial, state=TrialState.FAIL)
        else:
            trial.report(rate, 0)
            study.tell(trial, state=TrialState.PRUNED)
    assert ask(study)[1] == 0.05


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_try_that_diverged_loses(bad: float) -> None:
    study = make_study()
    for _ in range(3):
        trial, rate = ask(study)
        trial.report(bad if rate == 0.25 else rate, 0)
        study.tell(trial, state=TrialState.PRUNED)
    assert ask(study)[1] == 0.05


def test_a_try_that_was_cut_short_loses() -> None:
    study = make_study()
    for _ in range(3):
        trial, rate = ask(study)
        for epoch in range(2 if rate == 0.05 else 5):
            trial.report(rate, epoch)
        study.tell(trial, state=TrialState.PRUNED)
    assert ask(study)[1] == 0.25


def test_where_no_try_gave_a_value_the_tries_go_on() -> None:
    study = make_study()
    rates = []
    for _ in range(4):
        trial, rate = ask(study)
        rates.append(rate)
        study.tell(trial, state=TrialState.FAIL)
    assert rates == [0.05, 0.25, 0.5, 0.05]


def test_tries_that_report_nothing_are_judged_by_their_values() -> None:
    study = make_study()
    for value in (3.0, 1.0, 2.0):
        trial, _ = ask(study)
        study.tell(trial, value)
    assert ask(study)[1] == 0.25


def test_enqueued_rates_win_and_take_no_multiplier() -> None:
    study = make_study()
    study.enqueue_trial({"lr": 0.125})
    assert [ask(study)[1] for _ in range(4)] == [0.125, 0.05, 0.25, 0.5]


def test_a_trial_that_dies_before_it_asks_takes_no_multiplier() -> None:
    study = make_study()
    study.tell(study.ask(), state=TrialState.FAIL)
    assert [ask(study)[1] for _ in range(3)] == [0.05, 0.25, 0.5]


def test_a_callable_constant_and_other_parameters_stay() -> None:
    study = optuna.create_study(
        sampler=LipschitzSampler(
            lambda params: params["batch"], multipliers=(1.0, 4.0), tries=True, seed=0
        )
    )
    trial = study.ask()
    batch = trial.suggest_int("batch", 8, 64)
    assert trial.suggest_float("lr", 1e-6, 10.0) == 1.0 / batch


def test_tries_need_one_objective() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler())
    with pytest.raises(InvalidArgumentError, match="tries needs a study with one objective"):
        study.ask().suggest_float("lr", 1e-6, 10.0)


def test_under_hyperband_tries_span_all_brackets() -> None:
    study = optuna.create_study(sampler=sampler(), pruner=HyperbandPruner(max_resource=9))
    assert [ask(study)[1] for _ in range(3)] == [0.05, 0.25, 0.5]


# --- the pruner ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reports", "error"), [(0, InvalidArgumentError), (-1, InvalidArgumentError)]
)
def test_the_number_of_reports_is_checked(reports: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="reports"):
        TryPruner(reports)
    with pytest.raises(InvalidTypeError, match="reports"):
        TryPruner("5")  # type: ignore[arg-type]


class TestTryPrunerOnOtherTrials(PrunerTestCase):
    """No trial of the suite is a try."""

    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return lambda: TryPruner(3)

    def test_never_prunes(self, pruner: Callable[[], BasePruner]) -> None:
        study = self.study()
        for curve in ({0: math.nan}, dict.fromkeys(range(9), 1.0)):
            assert pruner().prune(study, self.frozen(study, curve)) is False


class TestTryPrunerOnTries(PrunerTestCase):
    """Every trial of the suite is a try."""

    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return lambda: TryPruner(3)

    def frozen(self, study: optuna.Study, curve: dict[int, float]) -> FrozenTrial:
        trial = super().frozen(study, curve)
        trial.user_attrs[MULTIPLIER] = {"multiplier": 1.0, "try": 0}
        return trial

    def asked(self, study: optuna.Study) -> optuna.Trial:
        trial = super().asked(study)
        trial.set_user_attr(MULTIPLIER, {"multiplier": 1.0, "try": 0})
        return trial

    def test_prunes_with_the_last_of_the_reports_whatever_their_steps(
        self, pruner: Callable[[], BasePruner]
    ) -> None:
        study = self.study()
        for steps in ((0, 1, 2), (34, 68, 102), (7, 5, 3)):
            curve = dict.fromkeys(steps[:2], 1.0)
            assert pruner().prune(study, self.frozen(study, curve)) is False
            curve[steps[2]] = 1.0
            assert pruner().prune(study, self.frozen(study, curve)) is True

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_prunes_at_once_what_is_not_finite(
        self, pruner: Callable[[], BasePruner], bad: float
    ) -> None:
        study = self.study()
        assert pruner().prune(study, self.frozen(study, {0: bad})) is True
