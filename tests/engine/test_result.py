"""The result as JSON and tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from lrsearch import search
from lrsearch.cli.tables import answer, ladder
from lrsearch.engine import METHODS
from lrsearch.engine.result import OUTCOME, choose, finite, records
from lrsearch.studies.attributes import RUNG

MakeLine = Callable[..., Any]
CONTRACT = {
    "task",
    "method",
    "mode",
    "lr",
    "value",
    "steps",
    "stop_reason",
    "trials",
    "windows",
    "run_id",
    "tracking_uri",
}


@pytest.mark.parametrize("method", METHODS)
def test_the_json_has_the_keys_of_the_contract_and_no_word_outside_json(
    make_line: MakeLine, scale_bound: Callable[[float], None], method: str
) -> None:
    scale_bound(30.0)
    start = "bound" if method == "exptest" else None
    result = search(make_line().task, method=method, start=start, tracker="none")
    content = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert content.keys() >= CONTRACT
    assert content["task"] == "line"
    assert content["method"] == method
    assert content["steps"] == sum(trial["steps"] for trial in content["trials"])
    assert [trial["number"] for trial in content["trials"]] == list(range(len(content["trials"])))
    assert {trial["state"] for trial in content["trials"]} <= {"COMPLETE", "PRUNED"}
    assert content["run_id"] == content["tracking_uri"] == ""
    if method == "exptest":
        assert {"trial", "start", "stop", "lr", "pvalue", "decision"} <= content["windows"][
            0
        ].keys()
        assert content["lr"] == content["trials"][-1]["lr"]
    else:
        assert content["windows"] == []


def test_a_study_without_an_answer_is_json_too(
    make_line: MakeLine, scale_bound: Callable[[float], None]
) -> None:
    scale_bound(1e4)
    result = search(make_line().task, trials=2, start="bound", tracker="none")
    content = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert content["lr"] is content["value"] is content["oracle_value"] is None
    assert content["stop_reason"]
    assert answer(result) == f"No rate was found ({result.stop_reason})."
    assert "diverged" in ladder(result)


def test_records_turn_numpy_and_nonfinite_numbers_into_plain_ones() -> None:
    table = pd.DataFrame(
        {
            "a": np.array([1.5, np.nan, np.inf], dtype=np.float32),
            "b": np.array([1, 2, 3], dtype=np.int64),
            "c": [True, False, True],
            "d": ["x", None, ""],
            "e": [1, None, 2.5],
        }
    )
    rows = json.loads(json.dumps(records(table), allow_nan=False))
    assert rows[0] == {"a": 1.5, "b": 1, "c": True, "d": "x", "e": 1.0}
    assert rows[1] == {"a": None, "b": 2, "c": False, "d": None, "e": None}
    assert finite(float("-inf")) is None
    assert finite("nan") == "nan"


def test_the_first_of_equally_good_trials_is_chosen_and_unfinished_ones_never(
    make_line: MakeLine,
) -> None:
    study = optuna.create_study()

    def add(value: float | None, state: optuna.trial.TrialState, lr: float, test: float) -> None:
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params={"lr": lr},
                distributions={"lr": optuna.distributions.FloatDistribution(1e-3, 1.0)},
                user_attrs={
                    OUTCOME: {
                        "val_loss": value,
                        "val_metric": value,
                        "train_loss": 0.0,
                        "test_metric": test,
                    }
                },
            )
        )

    state = optuna.trial.TrialState
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    add(0.01, state.PRUNED, 0.9, 0.001)
    add(0.5, state.COMPLETE, 0.1, 0.7)
    add(0.5, state.COMPLETE, 0.2, 0.6)
    add(0.8, state.COMPLETE, 0.3, 0.4)
    choice = choose(make_line().task, study)
    assert (choice.lr, choice.value, choice.oracle_value) == (0.1, 0.7, 0.4)


RUNS, DONE, PRUNED = (
    optuna.trial.TrialState.RUNNING,
    optuna.trial.TrialState.COMPLETE,
    optuna.trial.TrialState.PRUNED,
)


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([(0, PRUNED, 9.0), (1, DONE, 0.5), (2, DONE, 0.1)], 1),
        ([(1, DONE, 0.5), (0, DONE, 0.7), (2, PRUNED, 0.1)], 0),
        ([(0, PRUNED, 9.0), (None, DONE, 0.1), (1, DONE, 0.5)], 1),
        # No rung was completed: what was tried off the ladder is better than nothing.
        ([(0, PRUNED, 9.0), (None, DONE, 0.2), ("enqueued", DONE, 0.1)], "enqueued"),
        # The budget ended before the ladder was decided.
        ([(0, RUNS, None), (1, DONE, 0.5), (2, DONE, 0.1)], 1),
    ],
)
def test_the_choice_is_the_ladders_answer_whatever_the_losses(
    make_line: MakeLine, trials: list[Any], chosen: Any
) -> None:
    study = optuna.create_study()
    for number, (rung, state, value) in enumerate(trials):
        place = {} if rung == "enqueued" else {RUNG: {"ladder": 0, "rung": rung}}
        outcome = {"val_loss": value, "train_loss": 0.0, "test_metric": 0.0}
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params={"lr": 0.1 * (number + 1)},
                distributions={"lr": optuna.distributions.FloatDistribution(1e-3, 1.0)},
                user_attrs={**place, **({OUTCOME: outcome} if state == DONE else {})},
            )
        )
    expected = [rung for rung, _, _ in trials].index(chosen)
    assert choose(make_line().task, study).lr == pytest.approx(0.1 * (expected + 1))
