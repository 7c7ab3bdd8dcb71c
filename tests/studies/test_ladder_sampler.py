"""ExpTestSampler: one rung after the other, each once."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.testing.storages import STORAGE_MODES, StorageSupplier
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.studies import ExpTestSampler, OwnedParameterSampler
from lrsearch.studies.attributes import REASON, RUNG, STOP_REASON

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


def new_study(sampler: BaseSampler | None = None, **options: Any) -> optuna.Study:
    return optuna.create_study(sampler=sampler or ExpTestSampler(beta=0.1, seed=0), **options)


def suggest_lr(trial: Trial, low: float = 1e-5, high: float = 1.0) -> float:
    return trial.suggest_float("lr", low, high, log=True)


def run(study: optuna.Study, state: TrialState, *, momentum: bool = False) -> FrozenTrial:
    """Run one trial to its end by ask and tell."""
    trial = study.ask()
    if momentum:
        trial.suggest_float("momentum", 0.0, 0.99)
    suggest_lr(trial)
    study.tell(trial, 0.0 if state == COMPLETE else None, state=state)
    return study.trials[-1]


def rung(trial: FrozenTrial | Trial) -> tuple[int, int | None]:
    place = trial.user_attrs[RUNG]
    return place["ladder"], place["rung"]


def lrs(study: optuna.Study) -> list[float]:
    return [trial.params["lr"] for trial in study.trials]


def always_pruned(trial: Trial) -> float:
    suggest_lr(trial)
    raise optuna.TrialPruned


# --- The rungs -----------------------------------------------------------------------------------


@given(
    lr_max=st.none() | st.floats(1e-3, 1e3),
    beta=st.floats(0.05, 0.95),
    log=st.booleans(),
)
def test_pruned_trials_go_down_the_powers_of_beta(
    lr_max: float | None, beta: float, log: bool
) -> None:
    study = new_study(ExpTestSampler(lr_max, beta=beta))
    top = 10.0 if lr_max is None else min(lr_max, 10.0)
    for k in range(8):
        trial = study.ask()
        lr = trial.suggest_float("lr", 1e-30, 10.0, log=log)
        assert type(lr) is float
        assert math.isclose(lr, top * beta**k, rel_tol=1e-12)
        assert rung(trial) == (0, k)
        study.tell(trial, state=PRUNED)


def test_a_rung_at_the_lower_end_is_not_lost_to_rounding() -> None:
    study = new_study(ExpTestSampler(0.7, beta=0.1))
    assert 0.7 * 0.1 < 0.07
    for expected in (0.7, 0.07):
        trial = study.ask()
        assert suggest_lr(trial, 0.07, 1.0) == expected
        study.tell(trial, state=PRUNED)


def test_a_first_rung_below_the_range_names_both() -> None:
    trial = new_study(ExpTestSampler(1e-6)).ask()
    with pytest.raises(InvalidArgumentError, match=r"lr_max=1e-06 .*'lr', \[0.001, 1.0\]"):
        suggest_lr(trial, 1e-3, 1.0)


def test_other_kinds_of_parameter_go_to_the_base() -> None:
    study = new_study(ExpTestSampler(lr_name="x", seed=0))
    distributions: dict[str, Callable[[Trial], Any]] = {
        "int": lambda trial: trial.suggest_int("x", 2, 9),
        "categorical": lambda trial: trial.suggest_categorical("x", [3, 4]),
        "grid": lambda trial: trial.suggest_float("x", 1.0, 9.0, step=0.25),
        "negative": lambda trial: trial.suggest_float("x", -3.0, -1.0),
    }
    for suggest in distributions.values():
        values = {suggest(new_study(study.sampler).ask()) for _ in range(8)}
        assert len(values) > 1  # A ladder would begin at the top each time.


# --- The end of a ladder -------------------------------------------------------------------------


def test_a_completed_trial_stops_a_study_of_the_learning_rate_alone() -> None:
    study = new_study()

    def objective(trial: Trial) -> float:
        if suggest_lr(trial) > 0.05:
            raise optuna.TrialPruned
        return 1.0

    study.optimize(objective, n_trials=20)
    assert lrs(study) == pytest.approx([1.0, 0.1, 0.01])
    assert study.user_attrs[STOP_REASON].startswith("trial 2 completed with lr=0.01")


def test_a_used_up_range_stops_a_study_of_the_learning_rate_alone() -> None:
    study = new_study()
    study.optimize(always_pruned, n_trials=20)
    assert lrs(study) == pytest.approx([1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5])
    assert "no lr from the suggested range is left" in study.user_attrs[STOP_REASON]


def test_a_parameter_with_a_single_value_does_not_count_as_another() -> None:
    study = new_study()

    def objective(trial: Trial) -> float:
        return suggest_lr(trial) + trial.suggest_float("momentum", 0.9, 0.9)

    study.optimize(objective, n_trials=5)
    assert len(study.trials) == 1


def test_without_stop_when_found_another_ladder_begins() -> None:
    study = new_study(ExpTestSampler(beta=0.1, stop_when_found=False))
    for state in (PRUNED, COMPLETE, PRUNED, PRUNED):
        run(study, state)
    assert [rung(trial) for trial in study.trials] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    study.optimize(always_pruned, n_trials=6)
    places = [rung(trial) for trial in study.trials[4:]]
    assert places == [(2, 2), (2, 3), (2, 4), (2, 5), (8, 0), (8, 1)]
    assert STOP_REASON not in study.user_attrs


def test_asking_and_telling_records_the_reason_without_a_loop_to_stop() -> None:
    study = new_study()
    run(study, COMPLETE)
    assert "trial 0 completed" in study.user_attrs[STOP_REASON]


def test_a_worker_stops_once_another_has_found() -> None:
    found = new_study()

    def objective(trial: Trial) -> float:
        if trial.number == 0:
            # Another worker takes the next rung and completes it in the meantime.
            run(found, COMPLETE)
        return always_pruned(trial)

    worker = optuna.load_study(
        study_name=found.study_name, storage=found._storage, sampler=ExpTestSampler(beta=0.1)
    )
    worker.optimize(objective, n_trials=10)
    assert [trial.state for trial in worker.trials] == [PRUNED, COMPLETE]


def test_a_running_trial_keeps_a_used_up_study_open() -> None:
    study = new_study()
    running = study.ask()
    suggest_lr(running)
    for _ in range(5):
        run(study, PRUNED)
    assert STOP_REASON not in study.user_attrs
    study.tell(running, 1.0)
    assert "trial 0 completed" in study.user_attrs[STOP_REASON]


# --- Other parameters ----------------------------------------------------------------------------

BASES: dict[str, Any] = {
    "default": lambda: None,
    "random": lambda: RandomSampler(seed=1),
    "relative": lambda: TPESampler(n_startup_trials=0, multivariate=True, seed=1),
    "group": lambda: TPESampler(n_startup_trials=0, multivariate=True, group=True, seed=1),
}


@pytest.mark.filterwarnings("ignore:Argument ``group``:optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("base", BASES)
def test_a_configuration_keeps_its_other_parameters_along_its_ladder(base: str) -> None:
    study = new_study(ExpTestSampler(beta=0.1, base_sampler=BASES[base](), seed=1))

    def objective(trial: Trial) -> float:
        trial.suggest_float("momentum", 0.0, 0.99)
        lr = suggest_lr(trial)
        if trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "adam":
            trial.suggest_int("batch", 8, 64, log=True)
        if lr > 0.05:
            raise optuna.TrialPruned
        return lr + float(trial.params["momentum"])

    study.optimize(objective, n_trials=15)
    ladders: dict[int, list[FrozenTrial]] = {}
    for trial in study.trials:
        ladders.setdefault(rung(trial)[0], []).append(trial)
    assert list(ladders) == [0, 3, 6, 9, 12]
    momenta = set()
    for trials in ladders.values():
        assert [trial.params["lr"] for trial in trials] == pytest.approx([1.0, 0.1, 0.01])
        others = [{n: v for n, v in trial.params.items() if n != "lr"} for trial in trials]
        assert others == [others[0]] * 3
        momenta.add(others[0]["momentum"])
    assert len(momenta) == 5
    assert STOP_REASON not in study.user_attrs


def test_a_value_that_no_longer_fits_comes_from_the_base() -> None:
    study = new_study()
    first = study.ask({"a": FloatDistribution(0.0, 1.0), "b": CategoricalDistribution([1, 2])})
    suggest_lr(first)
    study.tell(first, state=PRUNED)
    second = study.ask({"a": FloatDistribution(5.0, 6.0)})
    assert rung(second) == (0, 1)
    assert 5.0 <= second.params["a"] <= 6.0


def test_changed_choices_meet_the_error_of_optuna_itself() -> None:
    study = new_study()
    study.tell(study.ask({"c": CategoricalDistribution(["a"])}), state=PRUNED)
    with pytest.raises(ValueError, match="dynamic value space"):
        study.ask({"c": CategoricalDistribution(["b", "d"])})


def test_the_next_configuration_begins_while_the_last_rungs_still_run() -> None:
    study = new_study()
    run(study, COMPLETE, momentum=True)
    # The range, which holds six rungs, is known from the first ladder.
    assert [rung(study.ask()) for _ in range(8)] == [(1, k) for k in range(6)] + [(7, 0), (7, 1)]


# --- Failures, retries, enqueued trials ----------------------------------------------------------


def test_a_failed_rung_is_tried_again_with_the_same_configuration() -> None:
    study = new_study()
    for state in (PRUNED, FAIL, PRUNED, PRUNED):
        run(study, state, momentum=True)
    assert [rung(trial) for trial in study.trials] == [(0, 0), (0, 1), (0, 1), (0, 2)]
    assert len({trial.params["momentum"] for trial in study.trials}) == 1


def test_the_lowest_of_two_failed_rungs_is_tried_first() -> None:
    study = new_study()
    both = [study.ask(), study.ask()]
    for trial in both:
        study.tell(trial, state=FAIL)
    assert [rung(study.ask()) for _ in range(3)] == [(0, 0), (0, 1), (0, 2)]


def test_a_failed_rung_is_tried_again_even_on_an_older_ladder() -> None:
    study = new_study(ExpTestSampler(beta=0.1, stop_when_found=False))
    early = study.ask()
    suggest_lr(early)
    for _ in range(5):
        run(study, PRUNED)
    assert rung(run(study, PRUNED)) == (6, 0)
    study.tell(early, state=FAIL)
    assert rung(run(study, PRUNED)) == (0, 0)
    assert rung(run(study, PRUNED)) == (6, 1)


def test_a_rung_that_keeps_failing_counts_as_rejected() -> None:
    study = new_study()

    def objective(trial: Trial) -> float:
        # What a plain training loop returns when it diverges; Optuna marks the trial as failed.
        return math.nan if suggest_lr(trial) > 0.5 else 1.0

    study.optimize(objective, n_trials=20)
    assert lrs(study) == pytest.approx([1.0, 1.0, 1.0, 0.1])


def test_an_enqueued_rate_wins_and_stands_on_no_ladder() -> None:
    study = new_study()
    run(study, PRUNED)
    study.enqueue_trial({"lr": 0.03})
    enqueued = run(study, COMPLETE)
    assert enqueued.params["lr"] == 0.03
    assert RUNG not in enqueued.user_attrs
    assert STOP_REASON not in study.user_attrs
    assert run(study, PRUNED).params["lr"] == pytest.approx(0.1)


def test_an_enqueued_configuration_begins_a_ladder_of_its_own() -> None:
    study = new_study()
    run(study, PRUNED, momentum=True)
    study.enqueue_trial({"momentum": 0.5})
    for _ in range(3):
        run(study, PRUNED, momentum=True)
    run(study, COMPLETE, momentum=True)
    run(study, PRUNED, momentum=True)
    places = [rung(trial) for trial in study.trials]
    assert places == [(0, 0), (1, 0), (0, 1), (0, 2), (0, 3), (1, 1)]
    assert study.trials[5].params["momentum"] == 0.5
    assert study.trials[4].params["momentum"] == study.trials[0].params["momentum"]


def test_a_retried_trial_brings_its_rung_along() -> None:
    study = new_study()
    run(study, PRUNED)
    dead = study.ask()
    suggest_lr(dead)
    study.tell(dead, state=FAIL)
    RetryHeartbeatStaleTrialCallback()(study, study.trials[-1])
    # The retry waits in the queue and holds its rung there; a newcomer must not take it.
    taken = [rung(trial) for trial in study.trials]
    assert taken == [(0, 0), (0, 1), (0, 1)]
    retry = run(study, PRUNED)
    assert retry.number == 2
    assert retry.params["lr"] == pytest.approx(0.1)
    assert rung(run(study, PRUNED)) == (0, 2)


def test_a_retry_of_a_trial_that_died_before_its_rate_keeps_the_rung() -> None:
    study = new_study()
    run(study, PRUNED)
    study.tell(study.ask(), state=FAIL)
    RetryHeartbeatStaleTrialCallback()(study, study.trials[-1])
    retry = run(study, PRUNED)
    assert rung(retry) == (0, 1)
    assert retry.params["lr"] == pytest.approx(0.1)


# --- One state for all workers -------------------------------------------------------------------


# Optuna's own search for a free port leaves its socket to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("mode", STORAGE_MODES)
def test_every_storage_gives_the_same_answers(mode: str) -> None:
    def objective(trial: Trial) -> float:
        trial.suggest_float("momentum", 0.0, 0.99)
        if suggest_lr(trial, 1e-2) > 0.05 or trial.number > 5:
            raise optuna.TrialPruned
        return 1.0

    def answers(storage: optuna.storages.BaseStorage | None) -> list[dict[str, Any]]:
        study = new_study(storage=storage)
        study.optimize(objective, n_trials=8)
        return [{**trial.params, **trial.user_attrs} for trial in study.trials]

    with StorageSupplier(mode) as storage:
        assert answers(storage) == answers(None)


def fresh(sampler: ExpTestSampler) -> ExpTestSampler:
    return ExpTestSampler(beta=0.1)


def pickled(sampler: ExpTestSampler) -> ExpTestSampler:
    restored: ExpTestSampler = pickle.loads(pickle.dumps(sampler))
    return restored


@pytest.mark.parametrize("successor", [fresh, pickled, copy.deepcopy])
def test_another_instance_goes_on(successor: Any) -> None:
    study = new_study()
    for k in range(4):
        trial = study.ask()
        study.sampler = successor(study.sampler)  # In the middle of the trial.
        momentum = trial.suggest_float("momentum", 0.0, 0.99)
        assert suggest_lr(trial) == pytest.approx(0.1**k)
        assert momentum == study.trials[0].params["momentum"]
        study.tell(trial, state=PRUNED)
        study.sampler = successor(study.sampler)


def test_ladders_span_the_brackets_of_hyperband() -> None:
    study = new_study(pruner=HyperbandPruner(max_resource=27), study_name="brackets")

    def objective(trial: Trial) -> float:
        trial.suggest_float("momentum", 0.0, 0.99)
        lr = suggest_lr(trial)
        trial.report(lr, 0)
        trial.should_prune()
        if trial.number < 4:
            raise optuna.TrialPruned
        return lr

    study.optimize(objective, n_trials=5)
    pruner = study.pruner
    assert isinstance(pruner, HyperbandPruner)
    assert len({pruner._get_bracket_id(study, trial) for trial in study.trials}) > 1
    assert [rung(trial) for trial in study.trials] == [(0, k) for k in range(5)]


def test_a_study_of_the_rate_alone_stops_under_hyperband() -> None:
    study = new_study(pruner=HyperbandPruner(max_resource=27))
    study.optimize(lambda trial: suggest_lr(trial), n_trials=5)
    assert len(study.trials) == 1
    assert "trial 0 completed" in study.user_attrs[STOP_REASON]


def test_partially_fixed_parameters_stay_fixed() -> None:
    study = new_study(PartialFixedSampler({"momentum": 0.7}, ExpTestSampler(beta=0.1)))
    trials = [run(study, PRUNED, momentum=True) for _ in range(3)]
    assert [trial.params["momentum"] for trial in trials] == [0.7] * 3
    assert lrs(study) == pytest.approx([1.0, 0.1, 0.01])


class ForgetfulWrapper(BaseSampler):
    """Forwards what it must and forgets before_trial, as wrappers in the registry do."""

    def __init__(self, inner: BaseSampler) -> None:
        self.inner = inner

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: Any, distribution: Any) -> Any:
        return self.inner.sample_independent(study, trial, param_name, distribution)


def test_the_ladder_holds_under_a_wrapper_that_forgets_the_start_of_a_trial() -> None:
    study = new_study(ForgetfulWrapper(ExpTestSampler(beta=0.1)))
    for _ in range(3):
        run(study, PRUNED)
    assert lrs(study) == pytest.approx([1.0, 0.1, 0.01])


def test_two_objectives_climb_down_as_well() -> None:
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=ExpTestSampler(beta=0.1, seed=0)
    )

    def objective(trial: Trial) -> Sequence[float]:
        trial.suggest_float("momentum", 0.0, 0.99)
        if suggest_lr(trial) > 0.5:
            raise optuna.TrialPruned
        return 1.0, 2.0

    study.optimize(objective, n_trials=4)
    assert [rung(trial) for trial in study.trials] == [(0, 0), (0, 1), (2, 0), (2, 1)]


# --- What is passed on ---------------------------------------------------------------------------


class SpySampler(RandomSampler):
    """Notes each call."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.calls: list[str] = []

    def infer_relative_search_space(self, *args: Any) -> Any:
        self.calls.append("infer")
        return {"lr": FloatDistribution(0.1, 1.0), "momentum": FloatDistribution(0.0, 1.0)}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        self.calls.append("relative:" + ",".join(search_space))
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, distribution: Any) -> Any:
        self.calls.append("independent:" + param_name)
        return super().sample_independent(study, trial, param_name, distribution)

    def before_trial(self, *args: Any) -> None:
        self.calls.append("before")

    def after_trial(self, study: Any, trial: Any, state: TrialState, values: Any) -> None:
        self.calls.append("after:" + state.name)

    def reseed_rng(self) -> None:
        self.calls.append("reseed")


@pytest.mark.parametrize("state", [COMPLETE, PRUNED, FAIL])
def test_all_six_hooks_reach_the_base_once_and_without_the_owned_name(state: TrialState) -> None:
    spy = SpySampler()
    study = new_study(ExpTestSampler(base_sampler=spy))
    study.sampler.reseed_rng()
    run(study, state, momentum=True)
    assert spy.calls == [
        "reseed",
        "before",
        "infer",
        "relative:momentum",
        "independent:momentum",
        f"after:{state.name}",
    ]


def test_the_base_is_not_asked_for_what_the_ladder_has_settled() -> None:
    spy = SpySampler()
    study = new_study(ExpTestSampler(base_sampler=spy))
    first = run(study, PRUNED, momentum=True)
    spy.calls.clear()
    second = study.ask()
    assert second.relative_params == {"momentum": first.params["momentum"]}
    assert spy.calls == ["before", "infer"]


class NumpyRate(OwnedParameterSampler):
    """A careless child."""

    def _own_value(self, *args: Any) -> float:
        rate: float = np.float64(0.5)
        return rate


def test_a_child_that_answers_with_a_numpy_float_does_no_harm() -> None:
    trial = new_study(NumpyRate()).ask()
    assert type(suggest_lr(trial)) is float


class Explaining(ExpTestSampler):
    """Explains every pruned trial alike."""

    def _explain(self, study: optuna.Study, trial: FrozenTrial) -> None:
        study._storage.set_trial_user_attr(trial._trial_id, REASON, "too large")


def test_only_a_pruned_trial_without_a_reason_is_explained() -> None:
    study = new_study(Explaining(stop_when_found=False))
    for state in (PRUNED, COMPLETE, FAIL):
        run(study, state)
    known = study.ask()
    known.set_user_attr(REASON, "not finite")
    study.tell(known, state=PRUNED)
    reasons = [trial.user_attrs.get(REASON) for trial in study.trials]
    assert reasons == ["too large", None, None, "not finite"]


# --- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lr_max", [0.0, -1.0, math.nan, math.inf])
def test_lr_max_must_be_positive_and_finite(lr_max: float) -> None:
    with pytest.raises(InvalidArgumentError, match="lr_max must be a positive finite number"):
        ExpTestSampler(lr_max)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, -0.5, math.nan])
def test_beta_must_lie_between_zero_and_one(beta: float) -> None:
    with pytest.raises(InvalidArgumentError, match="beta must lie strictly between 0 and 1"):
        ExpTestSampler(beta=beta)


def test_names_and_samplers_must_be_such() -> None:
    with pytest.raises(InvalidArgumentError, match="lr_name"):
        ExpTestSampler(lr_name="")
    with pytest.raises(InvalidTypeError, match="lr_name must be a string, got 3"):
        ExpTestSampler(lr_name=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="base_sampler must be"):
        ExpTestSampler(base_sampler=TPESampler)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="lr_max"):
        ExpTestSampler("0.1")  # type: ignore[arg-type]
