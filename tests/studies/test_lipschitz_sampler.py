"""LipschitzSampler: the rate from a constant."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.studies import LipschitzSampler


def study_with(sampler: LipschitzSampler) -> optuna.Study:
    return optuna.create_study(sampler=sampler)


def next_lr(study: optuna.Study, low: float = 1e-6, high: float = 10.0) -> float:
    return study.ask().suggest_float("lr", low, high, log=True)


def eighth_of_batch(params: dict[str, Any]) -> float:
    return float(params["batch"]) / 8.0


def numpy_four(params: dict[str, Any]) -> Any:
    return np.float32(4.0)


@given(
    st.floats(1e-3, 1e3),
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4),
)
def test_each_trial_takes_the_next_multiplier_over_the_constant(
    constant: float, multipliers: list[float]
) -> None:
    study = study_with(LipschitzSampler(constant, multipliers=multipliers))
    for number in range(6):
        expected = multipliers[number % len(multipliers)] / constant
        assert math.isclose(next_lr(study, 1e-9, 1e9), expected, rel_tol=1e-12)


@pytest.mark.parametrize(("constant", "expected"), [(1e9, 0.01), (1e-9, 1.0), (2.0, 0.5)])
def test_the_rate_is_clipped_into_the_range(constant: float, expected: float) -> None:
    lr = next_lr(study_with(LipschitzSampler(constant)), 0.01, 1.0)
    assert lr == expected
    assert type(lr) is float


def test_a_function_sees_the_other_parameters() -> None:
    study = study_with(LipschitzSampler(eighth_of_batch))
    trial = study.ask()
    batch = trial.suggest_categorical("batch", [16, 32, 64])
    assert trial.suggest_float("lr", 1e-6, 10.0) == 8.0 / batch


def test_a_function_may_return_a_numpy_number() -> None:
    lr = next_lr(study_with(LipschitzSampler(numpy_four)))
    assert lr == 0.25
    assert type(lr) is float


def test_asking_for_the_rate_too_early_says_so() -> None:
    trial = study_with(LipschitzSampler(eighth_of_batch)).ask()
    with pytest.raises(InvalidArgumentError, match="suggest 'lr' after the parameters"):
        trial.suggest_float("lr", 1e-6, 10.0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_function_must_return_a_positive_number(value: float) -> None:
    trial = study_with(LipschitzSampler(lambda params: value)).ask()
    with pytest.raises(InvalidArgumentError, match=r"lipschitz\(\{\}\) must be a positive finite"):
        trial.suggest_float("lr", 1e-6, 10.0)


def test_a_function_must_return_a_number() -> None:
    trial = study_with(LipschitzSampler(lambda params: "four")).ask()  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidTypeError, match="lipschitz"):
        trial.suggest_float("lr", 1e-6, 10.0)


@pytest.mark.parametrize("constant", [0.0, -2.0, math.nan, math.inf])
def test_the_constant_must_be_positive(constant: float) -> None:
    with pytest.raises(InvalidArgumentError, match="lipschitz must be a positive"):
        LipschitzSampler(constant)


def test_the_arguments_must_be_of_the_right_kind() -> None:
    with pytest.raises(InvalidTypeError, match="lipschitz"):
        LipschitzSampler("1")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="multipliers must hold at least one"):
        LipschitzSampler(1.0, multipliers=())
    with pytest.raises(InvalidArgumentError, match="multipliers"):
        LipschitzSampler(1.0, multipliers=(1.0, -1.0))


def test_an_enqueued_rate_wins() -> None:
    study = study_with(LipschitzSampler(2.0))
    study.enqueue_trial({"lr": 0.125})
    assert next_lr(study) == 0.125
    assert next_lr(study) == 0.5


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_where_the_original_was(duplicate: Any) -> None:
    study = study_with(LipschitzSampler(eighth_of_batch, multipliers=(1.0, 3.0)))
    for multiplier in (1.0, 3.0, 1.0, 3.0):
        study.sampler = duplicate(study.sampler)
        trial = study.ask({"batch": optuna.distributions.CategoricalDistribution([16])})
        assert trial.suggest_float("lr", 1e-6, 10.0) == multiplier / 2.0
