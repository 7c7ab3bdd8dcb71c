"""A store that fails, refuses, or dies during a training: the training goes on."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch_integrations import mlflow_connection, mlflow_values
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_store import (
    experiment_id,
    open_client,
)
from lrsearch_integrations.mlflow_tracker import LostRun, MlflowRun, attach_run, open_study_run
from lrsearch_integrations.mlflow_ui import free_port, server


def client_of(run: MlflowRun) -> MlflowClient:
    return MlflowClient(tracking_uri=run.tracking_uri)


def download(run: MlflowRun, name: str, folder: Path) -> Path:
    return Path(client_of(run).download_artifacts(run.run_id, name, str(folder)))


class Outage:
    """Makes every call to the store fail for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.on = True
        for name in ("log_batch", "log_artifact", "set_terminated", "create_run"):
            monkeypatch.setattr(MlflowClient, name, self._wrap(getattr(MlflowClient, name)))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.on:
                raise ConnectionError("gone\nfor good")
            return real(*args, **kwargs)

        return call


def test_an_outage_is_told_once_and_nothing_is_lost_when_it_ends(
    study: MlflowRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outage = Outage(monkeypatch)
    with caplog.at_level(logging.WARNING, "lrsearch"):
        for step in range(1200):
            study.log_metrics({"train/loss": 1.0}, step)
        study.log_params({"lr": 0.1})
        study.log_table("windows", pd.DataFrame({"a": [1]}))
        lost = study.child("trial-0")
    assert outage.calls == 2  # one batch, one child: the store is left in peace for a while
    assert len(caplog.records) == 1
    assert "\n" not in caplog.records[0].getMessage()
    assert "the training goes on: gone" in caplog.records[0].getMessage()
    assert isinstance(lost, LostRun)
    with lost:
        lost.log_metrics({"train/loss": 1.0}, 0)
        lost.log_figure("none", object())  # type: ignore[arg-type]  # it is not looked at
    outage.on = False
    study.finish("complete")
    run = client_of(study).get_run(study.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1"}
    assert len(client_of(study).get_metric_history(study.run_id, "train/loss")) == 1200
    assert {file.path for file in client_of(study).list_artifacts(study.run_id)} == {
        "windows.csv",
        "windows.parquet",
    }


def test_the_buffer_is_bounded_and_says_what_it_gave_up(
    study: MlflowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_values, "WAITING_METRICS", 1000)
    outage = Outage(monkeypatch)
    for step in range(5000):
        study.log_metrics({"train/loss": 1.0}, step)
    outage.on = False
    study.finish("complete")
    history = client_of(study).get_metric_history(study.run_id, "train/loss")
    assert [point.step for point in history] == list(range(4000, 5000))
    tags = client_of(study).get_run(study.run_id).data.tags
    assert tags["lrsearch.dropped_metrics"] == "4000"


def test_what_the_store_refuses_is_told_and_does_not_block_the_rest(
    study: MlflowRun, caplog: pytest.LogCaptureFixture
) -> None:
    study.log_params({"lr": 0.1})
    other = attach_run(study.run_id, study.tracking_uri)
    with caplog.at_level(logging.WARNING, "lrsearch"):
        other.log_params({"lr": 0.2})
        other.log_metrics({"a": 1.0}, 0)
        other.flush()
    assert [
        record.getMessage().count("refused to log parameters") for record in caplog.records
    ] == [1]
    assert client_of(study).get_run(study.run_id).data.metrics == {"a": 1.0}


@pytest.mark.slow
def test_a_server_that_dies_during_a_training_does_not_stop_it(
    store_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(mlflow_connection, "RETRY_SECONDS", 1000.0)
    with server(store_uri, port), contextlib.redirect_stderr(io.StringIO()):
        with open_study_run(experiment="remote", name="first", tracking_uri=uri) as first:
            trial = first.child("trial-0")
            for step in range(1500):
                trial.log_metrics({"train/loss": 1.0}, step)
            trial.log_table("windows", pd.DataFrame({"a": [1, 2]}))
            trial.finish("pruned")
        assert len(download(trial, "windows.csv", tmp_path).read_text().split()) == 3
        second = open_study_run(experiment="remote", name="second", tracking_uri=uri)
        second.log_params({"lr": 0.1})
        for step in range(600):
            second.log_metrics({"train/loss": 1.0}, step)
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING, "lrsearch"):
        for step in range(600, 20_000):
            second.log_metrics({"train/loss": 1.0}, step)
        second.child("trial-1").finish("complete")
        second.finish("complete")
    assert time.monotonic() - begin < 20
    assert len([record for record in caplog.records if record.name == "lrsearch"]) == 1
    assert capsys.readouterr().out == ""

    client = open_client(store_uri)
    states = {
        run.info.run_name: run.info.status
        for run in client.search_runs([experiment_id(client, "remote", store_uri)])
    }
    assert states == {"first": "FINISHED", "trial-0": "KILLED", "second": "RUNNING"}
    assert len(client.get_metric_history(trial.run_id, "train/loss")) == 1500
