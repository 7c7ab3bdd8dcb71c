"""Plain Optuna studies and plain loops in MLflow, on a real SQLite store."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from recorded_studies import everything, history, runs_of

import lrsearch_integrations
from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_optuna import MLflowTracker
from lrsearch_integrations.mlflow_store import StoreError
from lrsearch_integrations.mlflow_ui import free_port

optuna.logging.set_verbosity(optuna.logging.ERROR)


def mixed(trial: optuna.Trial) -> float:
    """Trials 0, 3, ... are complete, 1, 4, ... pruned, 2, 5, ... fail."""
    x = trial.suggest_float("x", 0.0, 1.0)
    trial.suggest_categorical("kind", [None, "a", 3, True])
    trial.set_user_attr("note", {"number": trial.number})
    for step in (0, 2, 5):
        trial.report(x + step, step)
    if trial.number % 3 == 1:
        raise optuna.TrialPruned
    if trial.number % 3 == 2:
        raise ValueError("the objective's own")
    return x


def test_every_trial_is_recorded_with_its_true_status_and_all_its_values(store_uri: str) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with MLflowTracker(tracking_uri=store_uri, name="mine", tags={"who": "me"}) as tracker:
        study.optimize(mixed, n_trials=3, callbacks=[tracker], catch=ValueError)
    parent, trials = runs_of(store_uri)
    shown = {
        name: (run.info.status, run.data.tags["lrsearch.trial_state"])
        for name, run in trials.items()
    }
    assert shown == {
        "trial-0": ("FINISHED", "COMPLETE"),
        "trial-1": ("KILLED", "PRUNED"),
        "trial-2": ("FAILED", "FAIL"),
    }
    for trial in study.trials:
        run = trials[f"trial-{trial.number}"]
        assert run.data.params == {name: str(value) for name, value in trial.params.items()}
        assert json.loads(run.data.tags["note"]) == {"number": trial.number}
        assert history(store_uri, run, "intermediate_value") == sorted(
            trial.intermediate_values.items()
        )
        assert ("value" in run.data.metrics) == (trial.number == 0)
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert run.info.start_time == int(trial.datetime_start.timestamp() * 1000)
        assert run.info.end_time == int(trial.datetime_complete.timestamp() * 1000)
        space = json.loads(run.data.tags["lrsearch.distributions"])
        assert space["x"]["name"] == "FloatDistribution"
        assert space["kind"]["attributes"]["choices"] == [None, "a", 3, True]
    assert trials["trial-0"].data.metrics["value"] == study.best_value
    tags = parent.data.tags
    assert (parent.info.status, parent.info.run_name, tags["who"]) == ("FINISHED", "mine", "me")
    assert parent.data.metrics["best_value"] == study.best_value
    assert tags["lrsearch.best_trial"] == "0"
    assert json.loads(tags["lrsearch.best_params"]) == study.best_params
    counts = {state: tags[f"lrsearch.trials_{state}"] for state in ("complete", "pruned", "fail")}
    assert counts == {"complete": "1", "pruned": "1", "fail": "1"}
    assert tags["lrsearch.sampler"] == "RandomSampler"
    assert tags["lrsearch.pruner"] == "MedianPruner"
    assert tags["lrsearch.direction"] == "minimize"


def test_the_study_has_a_table_of_its_trials(store_uri: str, tmp_path: Path) -> None:
    study = optuna.create_study()
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(mixed, n_trials=3, callbacks=[tracker], catch=ValueError)
    parent, _ = runs_of(store_uri)
    client = MlflowClient(tracking_uri=store_uri)
    for name, read in (("study.csv", pd.read_csv), ("study.parquet", pd.read_parquet)):
        path = client.download_artifacts(parent.info.run_id, name, str(tmp_path))
        frame = read(path)
        assert list(frame["state"]) == ["COMPLETE", "PRUNED", "FAIL"]
        assert frame["duration"].dtype == float


def test_values_that_are_not_finite_cost_nothing_else(store_uri: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        for step, value in enumerate([1.0, math.nan, math.inf, 2.0]):
            trial.report(value, step)
        return [math.nan, math.inf, 3.0][trial.number]

    study = optuna.create_study()
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(objective, n_trials=3, callbacks=[tracker])
    parent, trials = runs_of(store_uri)
    assert [run.info.status for _, run in sorted(trials.items())] == [
        "FAILED",
        "FINISHED",
        "FINISHED",
    ]
    for run in trials.values():
        assert history(store_uri, run, "intermediate_value") == [(0, 1.0), (3, 2.0)]
        assert run.data.metrics["diverged_at_step"] == 1.0
    assert "value" not in trials["trial-1"].data.metrics
    assert parent.data.metrics["best_value"] == 3.0


def test_what_a_pruner_ends_is_killed(store_uri: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        for step in range(5):
            trial.report(float(trial.number), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(trial.number)

    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    with MLflowTracker(tracking_uri=store_uri, intermediate="val/loss") as tracker:
        study.optimize(objective, n_trials=4, callbacks=[tracker])
    _, trials = runs_of(store_uri)
    assert [run.info.status for _, run in sorted(trials.items())] == ["FINISHED"] * 2 + [
        "KILLED"
    ] * 2
    assert history(store_uri, trials["trial-3"], "val/loss") == [(0, 3.0)]


def test_several_objectives_under_their_own_names(store_uri: str) -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.set_metric_names(["loss", "accuracy"])
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(lambda trial: (trial.number, trial.number), n_trials=3, callbacks=[tracker])
    parent, trials = runs_of(store_uri)
    assert trials["trial-2"].data.metrics == {"loss": 2.0, "accuracy": 2.0}
    assert parent.data.tags["lrsearch.direction"] == "minimize, maximize"
    assert parent.data.tags["lrsearch.best_trials"] == "3"


def test_objectives_in_threads_run_side_by_side_and_do_not_mix(store_uri: str) -> None:
    together = threading.Barrier(4, timeout=60)

    def objective(trial: optuna.Trial) -> float:
        together.wait()  # broken unless four objectives run at a time
        trial.report(float(trial.number), trial.number)
        return float(trial.number)

    study = optuna.create_study()
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(objective, n_trials=8, n_jobs=4, callbacks=[tracker])
    parent, trials = runs_of(store_uri)
    assert len(trials) == 8
    for number in range(8):
        run = trials[f"trial-{number}"]
        assert run.data.metrics["value"] == number
        assert history(store_uri, run, "intermediate_value") == [(number, float(number))]
    first = [trials[f"trial-{number}"].info for number in range(4)]
    assert max(run.start_time for run in first) <= min(run.end_time for run in first)
    assert parent.data.tags["lrsearch.trials_complete"] == "8"


# --- what the callback does not hear of --------------------------------------------------------


def test_a_study_that_ran_without_the_tracker_is_recorded_once(store_uri: str) -> None:
    study = optuna.create_study()
    study.optimize(mixed, n_trials=4, catch=ValueError)
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        assert tracker.record(study) == 4
        assert tracker.record(study) == 0
    first = everything(store_uri)
    assert len(first) == 4
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        assert tracker.record(study) == 0
    assert everything(store_uri) == first
    assert runs_of(store_uri)[0].info.status == "FINISHED"


def test_recording_what_the_store_has_changes_nothing_even_unasked(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store did not answer when asked what it has: all is sent again."""
    from lrsearch_integrations.mlflow_study import StudyLog

    study = optuna.create_study()
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(mixed, n_trials=3, callbacks=[tracker], catch=ValueError)
    first = everything(store_uri)
    monkeypatch.setattr(StudyLog, "stored", lambda self: set())
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        assert tracker.record(study) == 3
    assert everything(store_uri) == first


def test_the_trial_that_ends_a_study_is_recorded_too(store_uri: str) -> None:
    study = optuna.create_study()
    with pytest.raises(ValueError, match="own"), MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(mixed, n_trials=3, callbacks=[tracker])
    parent, trials = runs_of(store_uri)
    assert trials["trial-2"].info.status == parent.info.status == "FAILED"
    assert "x" in trials["trial-2"].data.params


# --- trouble -----------------------------------------------------------------------------------


def test_a_store_that_is_gone_costs_a_warning_and_no_trial(
    tmp_path: Path, store_uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setenv("LRSEARCH_SPOOL", str(tmp_path / "spool"))
    study = optuna.create_study()
    with (
        caplog.at_level(logging.WARNING, "lrsearch"),
        MLflowTracker(tracking_uri=f"http://127.0.0.1:{free_port()}") as tracker,
    ):
        study.optimize(mixed, n_trials=3, callbacks=[tracker], catch=ValueError)
        assert tracker.record(study) == 0
    assert len(study.trials) == 3
    assert len(list((tmp_path / "spool").iterdir())) == 4
    told, left = [each.getMessage() for each in caplog.records if each.name == "lrsearch"]
    assert "the training goes on" in told
    assert "lrsearch sync sends it" in left


def test_the_trackers_own_trouble_never_ends_a_study(
    tmp_path: Path, store_uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LRSEARCH_SPOOL", str(tmp_path / "file" / "spool"))

    def objective(trial: optuna.Trial) -> float:
        with tracker.trial(trial) as run:
            run.log_metrics({"a": 1.0}, 0)
        return 1.0

    study = optuna.create_study()
    with (
        caplog.at_level(logging.WARNING, "lrsearch"),
        MLflowTracker(tracking_uri=store_uri) as tracker,
    ):
        study.optimize(objective, n_trials=3, callbacks=[tracker])
    assert len(study.trials) == 3
    assert [record.getMessage().count("LRSEARCH_SPOOL") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"experiment": ""}, InvalidArgumentError, "experiment must not be empty"),
        ({"experiment": 3}, InvalidTypeError, "experiment must be a text, got 3"),
        ({"name": " "}, InvalidArgumentError, "name must not be empty"),
        ({"tags": ["a"]}, InvalidTypeError, r"tags must be a mapping, got \['a'\]"),
        ({"tracking_uri": 3}, InvalidTypeError, "tracking_uri must be a text, got 3"),
        ({"intermediate": None}, InvalidTypeError, "intermediate must be a text, got None"),
        ({"tracking_uri": "nonsense://x"}, StoreError, "cannot open the MLflow store"),
    ],
)
def test_bad_arguments_are_named(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        MLflowTracker(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tracker: tracker.record(3), "study must be an optuna.Study, got int"),
        (
            lambda tracker: tracker.trial(3).__enter__(),
            "trial must be the optuna.Trial .*, got int",
        ),
        (lambda tracker: tracker.close("done"), "status must be one of"),
    ],
)
def test_misuse_is_named(
    store_uri: str, call: Callable[[MLflowTracker], object], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(MLflowTracker(tracking_uri=store_uri))


def test_the_package_brings_the_tracker_and_no_mlflow_before_it_is_asked_for() -> None:
    assert lrsearch_integrations.MLflowTracker is MLflowTracker
    code = "import sys, lrsearch_integrations; print('mlflow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        lrsearch_integrations.Nothing  # noqa: B018
