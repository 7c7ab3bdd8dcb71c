"""Trainings that log for themselves: inside an objective, and inside the user's own MLflow run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from recorded_studies import history, runs_of

from lrsearch.tracking import RunTracker
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_optuna import MLflowTracker
from lrsearch_integrations.mlflow_store import open_client

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_trial_that_logs_itself_has_one_run(store_uri: str, pruned: bool) -> None:
    seen: list[str] = []

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        with tracker.trial(trial) as run:
            for step in range(20):
                run.log_metrics({"train/loss": 1.0 / (1 + step)}, step)
            seen.append(MlflowClient(tracking_uri=store_uri).get_run(run.run_id).info.status)
            if pruned:
                raise optuna.TrialPruned
        return 1.0

    study = optuna.create_study()
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(objective, n_trials=2, callbacks=[tracker])
    _, trials = runs_of(store_uri)
    assert seen == ["RUNNING", "RUNNING"]
    assert [run.info.status for run in trials.values()] == ["KILLED" if pruned else "FINISHED"] * 2
    for run in trials.values():
        assert len(history(store_uri, run, "train/loss")) == 20
        assert set(run.data.params) == {"x"}


def test_trials_that_no_callback_ends_are_ended_with_the_tracker(store_uri: str) -> None:
    study = optuna.create_study()
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        for _ in range(2):
            trial = study.ask()
            with tracker.trial(trial) as run:
                run.log_metrics({"a": 1.0}, 0)
            if trial.number == 0:
                study.tell(trial, 1.0)
    _, trials = runs_of(store_uri)
    assert trials["trial-0"].info.status == "FINISHED"
    assert trials["trial-1"].info.status == "FAILED"
    assert trials["trial-1"].data.tags["lrsearch.reason"] == "the study ended before the trial"


def train(tracker: RunTracker, steps: int = 600) -> Any:
    """A noisy regression under ExpTest; returns it."""
    import torch

    from lrsearch import ExpTest

    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    test = ExpTest(optimizer, model=model, total_steps=steps, tracker=tracker)
    inputs = torch.randn(256, 8)
    targets = inputs.sum(1, keepdim=True)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if test.step(loss).kind == "stop":
            break
    return test


def check_training(uri: str, run: Any, test: Any) -> None:
    assert test.windows
    for window in test.windows:
        for key, value in window.as_metrics().items():
            assert (window.last_step, value) in history(uri, run, key)
    assert len(history(uri, run, "train/loss")) > 10


@pytest.mark.slow
def test_a_plain_loop_logs_into_the_users_own_run(store_uri: str, tmp_path: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store_uri)
    try:
        with mlflow.start_run() as active:
            test = train(MLflowTracker.active())
            # Delivered when the loop's ExpTest has stopped.
            client = MlflowClient(tracking_uri=store_uri)
            check_training(store_uri, client.get_run(active.info.run_id), test)
            with MLflowTracker.active() as again:
                again.log_steps([1.0, 2.0], 0, 0.1)
            assert client.get_run(active.info.run_id).info.status == "RUNNING"
            still = mlflow.active_run()
            assert still is not None
            assert still.info.run_id == active.info.run_id
            assert mlflow.get_tracking_uri() == store_uri
            path = client.download_artifacts(
                active.info.run_id, "curves/steps.parquet", str(tmp_path)
            )
            assert list(pd.read_parquet(path)["loss"]) == [1.0, 2.0]
        client = open_client(store_uri)
        (run,) = client.search_runs(["0"])
        assert run.info.status == "FINISHED"
        check_training(store_uri, run, test)
        assert "lrsearch.trial_state" not in run.data.tags
    finally:
        mlflow.set_tracking_uri(before)


def test_exptest_and_lipschitz_log_into_a_trials_run(store_uri: str) -> None:
    import torch

    from lrsearch import LipschitzLR

    def objective(trial: optuna.Trial) -> float:
        with tracker.trial(trial) as run:
            tests.append(train(run))
            model = torch.nn.Linear(8, 3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            rates = LipschitzLR(optimizer, model, tracker=run)
            loss = torch.nn.functional.cross_entropy(
                model(torch.randn(32, 8)), torch.randint(3, (32,))
            )
            loss.backward()
            optimizer.step()
            rates.step()
        return 0.0

    tests: list[Any] = []
    study = optuna.create_study()
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(objective, n_trials=1, callbacks=[tracker])
    _, trials = runs_of(store_uri)
    check_training(store_uri, trials["trial-0"], tests[0])
    assert len(history(store_uri, trials["trial-0"], "lipschitz/lr")) == 1


def test_without_an_active_run_there_is_nothing_to_attach_to() -> None:
    with pytest.raises(RuntimeError, match=r"no MLflow run is active in this thread: .*start_run"):
        MLflowTracker.active()
