"""A store that fails, refuses, or dies during a training: the training goes on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_store import spool_folder
from lrsearch_integrations.mlflow_tracker import MlflowRun, attach_run


def client_of(run: MlflowRun) -> MlflowClient:
    return MlflowClient(tracking_uri=run.tracking_uri)


def download(run: MlflowRun, name: str, folder: Path) -> Path:
    return Path(client_of(run).download_artifacts(run.run_id, name, str(folder)))


class Outage:
    """Makes every call to the store fail for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.on = True
        for name in ("log_batch", "log_artifact", "log_inputs", "set_terminated", "create_run"):
            monkeypatch.setattr(MlflowClient, name, self._wrap(getattr(MlflowClient, name)))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.on:
                raise ConnectionError("gone\nfor good")
            return real(*args, **kwargs)

        return call


def log_everything(run: MlflowRun) -> None:
    for step in range(1200):
        run.log_metrics({"train/loss": 1.0 / (1 + step)}, step)
    run.log_params({"lr": 0.1})
    run.log_input("digits", "abc")
    run.log_steps([1.0, math.nan, 0.5], 0, 0.1)
    run.log_table("windows", pd.DataFrame({"a": [1]}))


def check_everything(client: MlflowClient, run_id: str) -> None:
    run = client.get_run(run_id)
    assert run.data.params == {"lr": "0.1"}
    history = client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [
        (step, 1.0 / (1 + step)) for step in range(1200)
    ]
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["digits"]
    names = {file.path for file in client.list_artifacts(run_id)}
    assert names == {"windows.csv", "windows.parquet", "curves"}


def test_an_outage_is_told_once_and_nothing_is_lost_when_it_ends(
    study: MlflowRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert study.run_id
    outage = Outage(monkeypatch)
    with caplog.at_level(logging.WARNING, "lrsearch"):
        log_everything(study)
        trial = study.child("trial-0")
        log_everything(trial)
        begin = time.monotonic()
        trial.finish("pruned")
        assert time.monotonic() - begin < 5.0
    assert outage.calls == 1  # the store is left in peace for a while
    messages = [record.getMessage() for record in caplog.records]
    assert not any("\n" in message for message in messages)
    assert ["the training goes on: gone" in messages[0], "lrsearch sync" in messages[-1]] == [1, 1]
    assert len(messages) == 2
    assert trial.run_id == ""
    outage.on = False
    study._sender.connection.wake()
    study.finish("complete")
    client = client_of(study)
    check_everything(client, study.run_id)
    check_everything(client, trial.run_id)
    assert client.get_run(study.run_id).info.status == "FINISHED"
    ended = client.get_run(trial.run_id)
    assert (ended.info.status, ended.data.tags["lrsearch.trial_state"]) == ("KILLED", "PRUNED")
    assert list(spool_folder(study.tracking_uri).glob("*")) == []


def test_what_the_store_refuses_is_told_and_does_not_block_the_rest(
    study: MlflowRun, caplog: pytest.LogCaptureFixture
) -> None:
    study.log_params({"lr": 0.1})
    assert study.flush()
    other = attach_run(study.run_id, study.tracking_uri)
    with caplog.at_level(logging.WARNING, "lrsearch"):
        other.log_params({"lr": 0.2})
        other.log_metrics({"a": 1.0}, 0)
        assert other.flush()
    assert [
        record.getMessage().count("refused to log parameters") for record in caplog.records
    ] == [1]
    assert client_of(study).get_run(study.run_id).data.metrics == {"a": 1.0}


def test_a_run_is_closed_to_what_comes_after_its_end(
    study: MlflowRun, caplog: pytest.LogCaptureFixture
) -> None:
    trial = study.child("trial")
    trial.finish("complete")
    with caplog.at_level(logging.WARNING, "lrsearch"):
        trial.log_metrics({"late": 1.0}, 0)
        trial.log_table("late", pd.DataFrame({"a": [1]}))
    assert ["after the end of a run" in record.getMessage() for record in caplog.records] == [True]
    assert client_of(study).get_run(trial.run_id).data.metrics == {}
