"""A run that one process leaves and another goes on with: one run, whole, with one end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_store import spool_folder
from lrsearch_integrations.mlflow_sync import sync_spool
from lrsearch_integrations.mlflow_tracker import MlflowRun, open_study_run
from lrsearch_integrations.spool import Spool

LEAVING = """if True:
    import sys
    from lrsearch_integrations.mlflow_tracker import open_study_run
    study = open_study_run(
        experiment="digits", name="study", tracking_uri=sys.argv[1], uid="mine"
    )
    trial = study.child("trial", uid="mine-0")
    trial.log_metrics({"train/loss": 2.0}, 0, timestamp=1_000)
    trial.log_steps([2.0], 0, 0.1)
    trial.leave()
    study.leave()
    """


def open_mine(uri: str) -> MlflowRun:
    return open_study_run(experiment="digits", name="study", tracking_uri=uri, uid="mine")


def runs_of(uri: str) -> dict[str, Any]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    named = {run.data.tags["lrsearch.trial_uid"]: run for run in found}
    assert len(named) == len(found)
    return named


def waiting(uri: str) -> set[str]:
    return {run.header.uid for run in Spool(spool_folder(uri)).runs()}


def check_trial(uri: str, folder: Path) -> None:
    """Both processes' points, each once, and one end."""
    trial = runs_of(uri)["mine-0"]
    assert trial.info.status == "FINISHED"
    assert trial.data.tags["lrsearch.trial_state"] == "COMPLETE"
    client = MlflowClient(tracking_uri=uri)
    history = client.get_metric_history(trial.info.run_id, "train/loss")
    assert [(m.timestamp, m.step, m.value) for m in history] == [(1_000, 0, 2.0), (2_000, 1, 1.0)]
    table = client.download_artifacts(trial.info.run_id, "curves/steps.parquet", str(folder))
    assert pd.read_parquet(table)["loss"].tolist() == [2.0, 1.0]


def go_on(study: MlflowRun) -> MlflowRun:
    """As a training does: what the last checkpoint holds is told again."""
    trial = study.child("trial", uid="mine-0")
    trial.log_metrics({"train/loss": 2.0}, 0, timestamp=1_000)
    trial.log_steps([2.0], 0, 0.1)
    trial.log_metrics({"train/loss": 1.0}, 1, timestamp=2_000)
    trial.log_steps([1.0], 1, 0.1)
    return trial


def test_a_process_goes_on_with_a_run_that_another_one_left(store_uri: str, tmp_path: Path) -> None:
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", LEAVING, store_uri]
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert waiting(store_uri) == set()
    assert sync_spool(tracking_uri=store_uri) == []
    left = runs_of(store_uri)
    assert {run.info.status for run in left.values()} == {"RUNNING"}
    assert not any("lrsearch.trial_state" in run.data.tags for run in left.values())

    study = open_mine(store_uri)
    trial = go_on(study)
    assert (study.run_id, trial.run_id) == tuple(
        left[uid].info.run_id for uid in ("mine", "mine-0")
    )
    trial.finish("complete")
    study.finish("complete")
    assert runs_of(store_uri).keys() == left.keys()
    check_trial(store_uri, tmp_path)
    assert waiting(store_uri) == set()


def test_what_is_left_during_an_outage_is_free_at_once_and_its_end_is_no_end(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process takes the spool as it is, and nobody puts it away under its hands."""
    study = open_mine(store_uri)
    first = study.child("trial", uid="mine-0")
    assert first.run_id
    down, send = True, MlflowClient.log_batch

    def log_batch(*args: Any, **kwargs: Any) -> Any:
        if down:
            raise ConnectionError("gone")
        return send(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    first.log_metrics({"train/loss": 2.0}, 0, timestamp=1_000)
    first.log_steps([2.0], 0, 0.1)
    first.leave()
    assert "mine-0" in waiting(store_uri)
    second = study.child("trial", uid="mine-0")
    down = False
    study._sender.connection.wake()
    assert second.flush()
    assert study._sender.holds(second._delivery)
    assert "mine-0" in waiting(store_uri)
    second.log_metrics({"train/loss": 1.0}, 1, timestamp=2_000)
    second.log_steps([1.0], 1, 0.1)
    second.finish("complete")
    study.finish("complete")
    check_trial(store_uri, tmp_path)
    assert waiting(store_uri) == set()


def test_what_was_left_and_not_sent_is_sent_by_sync_and_stays_open(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_mine(store_uri)
    trial = study.child("trial", uid="mine-0")
    assert trial.run_id

    def log_batch(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("gone")

    with monkeypatch.context() as outage:
        outage.setattr(MlflowClient, "log_batch", log_batch)
        trial.log_metrics({"train/loss": 2.0}, 0)
        trial.leave()
        trial.leave()
    (report,) = sync_spool(tracking_uri=store_uri)
    assert (report.sent, report.left) == (1, 0)
    found = runs_of(store_uri)["mine-0"]
    assert found.info.status == "RUNNING"
    assert found.data.metrics == {"train/loss": 2.0}
    study.finish("complete")


def test_whoever_goes_on_waits_for_the_one_who_sends_what_is_left(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``sync`` holds a dead process's run while it sends it."""
    study = open_mine(store_uri)
    first = study.child("trial", uid="mine-0")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            first.leave()

    monkeypatch.setattr("lrsearch_integrations.mlflow_run.time.sleep", sleep)
    second = study.child("trial", uid="mine-0")
    assert len(waits) >= 3
    second.finish("complete")
    study.finish("complete")
