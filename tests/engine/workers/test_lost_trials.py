"""A worker that has lost its trial leaves the record to whoever has it."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch import search
from lrsearch.engine.attempt import Attempt
from lrsearch.engine.objective import Objective
from lrsearch.engine.result import SearchResult
from lrsearch.engine.running import EXPERIMENT
from lrsearch.engine.storage import RUN_UID
from lrsearch.studies.attributes import LEASE
from lrsearch_integrations import mlflow_run
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_run import MlflowRun
from lrsearch_integrations.mlflow_store import spool_folder
from lrsearch_integrations.mlflow_tracker import open_study_run
from lrsearch_integrations.spool import Spool


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at another's run but where a test says so."""
    monkeypatch.setattr("lrsearch_integrations.mlflow_tracker.sync", lambda *_, **__: None)


def take(trial: optuna.Trial) -> None:
    """Another worker gets the trial as well, from a reaper that was late."""
    storage = trial.study._storage
    lease = storage.get_trial(trial._trial_id).user_attrs[LEASE]
    storage.set_trial_user_attr(trial._trial_id, LEASE, {**lease, "key": "another"})


def tell(trial: optuna.Trial) -> None:
    """The other worker ends it."""
    storage = trial.study._storage
    storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5])


def run(tmp_path: Path, uri: str) -> SearchResult:
    return search(
        "worker_tasks:line",
        method="grid",
        trials=2,
        epochs=5,
        storage=f"journal:{tmp_path / 'study.journal'}",
        study_name="s",
        tracking_uri=uri,
    )


def check(result: SearchResult, uri: str) -> None:
    assert result.trials["state"].isin(["COMPLETE", "PRUNED"]).all()
    assert result.study.trials[0].value == 0.5
    client = MlflowClient(tracking_uri=uri)
    uid = result.study.user_attrs[RUN_UID]
    experiment = client.get_run(result.run_id).info.experiment_id
    (found,) = client.search_runs([experiment], f"tags.`lrsearch.trial_uid` = '{uid}-0'")
    assert found.info.status == "FINISHED"
    assert "lrsearch.reason" not in found.data.tags
    assert list(Spool(spool_folder(uri)).runs()) == []


@pytest.mark.parametrize("waits", [False, True])
def test_a_run_that_another_worker_has_ended_is_not_opened_again(
    tmp_path: Path, store_uri: str, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """The other one was faster: its record is closed, or still being written."""
    true, lost = Objective.__call__, []

    def called(self: Objective, trial: optuna.Trial) -> float:
        monkeypatch.setattr(Objective, "__call__", true)
        lost.append(trial.number)
        trial.suggest_float("lr", self.plan.low, self.plan.high, log=True)
        uid = trial.study.user_attrs[RUN_UID]
        study = open_study_run(experiment=EXPERIMENT, name="s", tracking_uri=store_uri, uid=uid)
        record = study.child("trial", uid=f"{uid}-0")
        take(trial)

        def end(*_: float) -> None:
            record.finish("complete")
            if trial.study.trials[0].state == TrialState.RUNNING:
                tell(trial)

        if waits:  # the other one ends while this one waits for the record
            clock = SimpleNamespace(monotonic=time.monotonic, sleep=end)
            monkeypatch.setattr(mlflow_run, "time", clock)
        else:
            end()
        try:
            return true(self, trial)
        finally:
            end()
            study.leave()

    monkeypatch.setattr(Objective, "__call__", called)
    result = run(tmp_path, store_uri)
    assert lost == [0]
    check(result, store_uri)


@pytest.mark.parametrize("moment", ["__init__", "train", "close"])
def test_a_trial_that_another_worker_ends_meanwhile_is_no_failure_here(
    tmp_path: Path, store_uri: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The other one is on another machine, whose spool is its own: both write the same run."""
    true, lost = getattr(Attempt, moment), []

    def called(self: Attempt, *arguments: Any) -> Any:
        monkeypatch.setattr(Attempt, moment, true)
        trial: optuna.Trial
        record: MlflowRun
        trial, record = arguments[1:3] if moment == "__init__" else (self._trial, self._run)
        lost.append(trial.number)
        take(trial)
        tell(trial)
        MlflowClient(tracking_uri=store_uri).set_terminated(record.run_id, "FINISHED")
        if moment == "train":  # trouble of its own
            raise MemoryError
        return true(self, *arguments)

    monkeypatch.setattr(Attempt, moment, called)
    result = run(tmp_path, store_uri)
    assert lost == [0]
    check(result, store_uri)
