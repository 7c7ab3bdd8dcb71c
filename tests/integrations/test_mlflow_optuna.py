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

import lrsearch_integrations
from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.tracking import RunTracker
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_optuna import MLflowTracker
from lrsearch_integrations.mlflow_store import StoreError, experiment_id, open_client
from lrsearch_integrations.mlflow_sync import sync_spool
from lrsearch_integrations.mlflow_ui import free_port, server

optuna.logging.set_verbosity(optuna.logging.ERROR)


def runs_of(uri: str, experiment: str = "lrsearch") -> tuple[Any, dict[str, Any]]:
    """The only study's run, and its trials' runs by name; fails if there is any other run."""
    client = open_client(uri)
    found = list(client.search_runs([experiment_id(client, experiment, uri)]))
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    trials = [run for run in found if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} <= {parent.info.run_id}
    names = [run.info.run_name for run in trials]
    assert len(names) == len(set(names)), names
    return parent, {run.info.run_name: run for run in trials}


def history(uri: str, run: Any, key: str) -> list[tuple[int, float]]:
    points = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in points)


def everything(uri: str) -> Any:
    """All that the store knows of all trials, for comparison."""
    _, trials = runs_of(uri)
    return {
        name: (
            run.info.run_id,
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            run.data.params,
            run.data.metrics,
            run.data.tags,
            history(uri, run, "intermediate_value"),
        )
        for name, run in trials.items()
    }


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


def test_a_resumed_study_goes_on_in_its_run(store_uri: str, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=storage)
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(mixed, n_trials=2, callbacks=[tracker])
    parent, _ = runs_of(store_uri)
    first = everything(store_uri)
    study = optuna.load_study(study_name="s", storage=storage)
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(lambda trial: -1.0, n_trials=2, callbacks=[tracker])
    again, trials = runs_of(store_uri)
    assert again.info.run_id == parent.info.run_id
    assert again.info.status == "FINISHED"
    assert again.data.metrics["best_value"] == -1.0
    assert set(trials) == {f"trial-{k}" for k in range(4)}
    assert {name: each for name, each in everything(store_uri).items() if name in first} == first


def test_a_study_that_takes_a_deleted_ones_name_has_a_run_of_its_own(
    store_uri: str, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        for _ in range(2):
            study = optuna.create_study(study_name="s", storage=storage)
            study.optimize(lambda trial: 1.0, n_trials=1, callbacks=[tracker])
            optuna.delete_study(study_name="s", storage=storage)
    client = open_client(store_uri)
    runs = client.search_runs([experiment_id(client, "lrsearch", store_uri)])
    assert sorted(run.info.run_name for run in runs) == ["s", "s", "trial-0", "trial-0"]


WORKER = """if True:
    import sys, time
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from lrsearch_integrations import MLflowTracker
    uri, storage = sys.argv[1:]
    if not storage.startswith("sqlite:"):
        storage = JournalStorage(JournalFileBackend(storage))
    study = optuna.load_study(study_name="s", storage=storage)
    def objective(trial):
        time.sleep(0.05)
        trial.report(float(trial.number), 0)
        return float(trial.number)
    tracker = MLflowTracker(tracking_uri=uri)
    study.optimize(objective, n_trials=5, callbacks=[tracker])
    # No close: Python's exit does it.
    """


def workers(folder: Path, uri: str, storage: str, count: int = 2, *, apart: bool = False) -> None:
    """Run workers at the same time; ``apart``: as on machines that share nothing but the server."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    path = os.pathsep.join(path for path in sys.path if path)
    processes = []
    for k in range(count):
        own = {"LRSEARCH_SPOOL": str(folder / (f"spool-{k}" if apart else "spool"))}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-W", "error::RuntimeWarning", "-c", WORKER, uri, storage],
                env={**kept, "PYTHONPATH": path, **own},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        assert "tracking of a study failed" not in err


def check_shared(uri: str, count: int) -> None:
    parent, trials = runs_of(uri)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["lrsearch.trials_complete"] == str(count)
    assert set(trials) == {f"trial-{k}" for k in range(count)}
    for name, run in trials.items():
        assert run.info.status == "FINISHED"
        assert run.data.metrics["value"] == float(name.removeprefix("trial-"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_processes_share_the_run_of_their_study(store_uri: str, tmp_path: Path, kind: str) -> None:
    if kind == "sqlite":
        storage = f"sqlite:///{tmp_path}/study.db"
        optuna.create_study(study_name="s", storage=storage)
    else:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        storage = str(tmp_path / "journal")
        optuna.create_study(study_name="s", storage=JournalStorage(JournalFileBackend(storage)))
    workers(tmp_path, store_uri, storage)
    check_shared(store_uri, 10)
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.slow
def test_processes_apart_share_the_run_on_a_server(store_uri: str, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=storage)
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    workers(tmp_path, uri, storage, 2, apart=True)  # the server is away yet
    with server(store_uri, port):
        for k in range(2):
            (report,) = sync_spool(tmp_path / f"spool-{k}", uri)
            assert (report.sent, report.left) == (6, 0)
        check_shared(store_uri, 10)
        workers(tmp_path, uri, storage, 3, apart=True)
        with MLflowTracker(tracking_uri=uri) as tracker:
            assert tracker.record(study) == 0
    check_shared(store_uri, 25)


@pytest.mark.slow
def test_processes_apart_that_begin_together_agree_on_one_run(
    store_uri: str, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=storage)
    port = free_port()
    with server(store_uri, port):
        workers(tmp_path, f"http://127.0.0.1:{port}", storage, 3, apart=True)
    check_shared(store_uri, 15)


# --- inside the objective, and inside the user's own run ---------------------------------------


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
            assert mlflow.active_run().info.run_id == active.info.run_id
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
