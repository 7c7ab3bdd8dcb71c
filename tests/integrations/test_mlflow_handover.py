"""A dead process's run is put away while somebody goes on with it: each moment, step by step."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch_integrations import mlflow_sync
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_delivery import Delivery
from lrsearch_integrations.mlflow_run import MlflowRun
from lrsearch_integrations.mlflow_sender import Sender
from lrsearch_integrations.mlflow_store import spool_folder
from lrsearch_integrations.mlflow_sync import sync
from lrsearch_integrations.mlflow_tracker import open_study_run
from lrsearch_integrations.spool import Header, Mark, Spool, SpooledRun


@pytest.fixture
def study(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> MlflowRun:
    """A study that does not look by itself for what the dead have left."""
    monkeypatch.setattr("lrsearch_integrations.mlflow_tracker.sync", lambda *_, **__: None)
    return open_study_run(experiment="digits", name="study", tracking_uri=store_uri, uid="mine")


def header(study: MlflowRun, uid: str) -> Header:
    return Header(
        uid=uid,
        tracking_uri=study.tracking_uri,
        experiment="digits",
        name="trial",
        tags={"lrsearch.kind": "trial"},
        start_time=1,
        parent="mine",
        named=True,
    )


def die(study: MlflowRun, uid: str) -> None:
    """Leave what a killed process leaves: a run without an end."""
    dead = study._sender.spool.begin(header(study, uid))
    dead.write("m", 1_000, 0, {"train/loss": 2.0})
    dead.release()


def put_away(study: MlflowRun, uid: str) -> None:
    """As another process does that has sent a run."""
    found = study._sender.spool.find(uid)
    assert found is not None
    assert found.acquire()
    found.remove()


def folders(study: MlflowRun) -> set[str]:
    return {path.name for path in study._sender.spool.folder.iterdir()}


def trial_of(study: MlflowRun) -> Any:
    client = MlflowClient(tracking_uri=study.tracking_uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (found,) = client.search_runs(
        [experiment.experiment_id], "tags.`lrsearch.trial_uid` = 'mine-0'"
    )
    return found


def test_whoever_goes_on_the_moment_a_dead_run_is_put_away_is_heard(
    study: MlflowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sender and ``sync`` are two threads of one process, and know runs by the same uid."""
    die(study, "mine-0")
    heirs: list[MlflowRun] = []
    true = SpooledRun.remove

    def remove(self: SpooledRun) -> None:
        true(self)
        if not heirs:
            with monkeypatch.context() as busy:  # the sender has yet to see it
                busy.setattr(Sender, "nudge", lambda sender: None)
                heirs.append(study.child("trial", uid="mine-0"))

    monkeypatch.setattr(SpooledRun, "remove", remove)
    assert sync(study._sender) == (1, 0, 1)
    assert trial_of(study).data.tags["lrsearch.reason"] == mlflow_sync.ENDED_SILENTLY
    (heir,) = heirs
    heir.log_metrics({"train/loss": 1.0}, 1)
    heir.finish("complete")
    study.finish("complete")
    trial = trial_of(study)
    assert trial.info.status == "FINISHED"
    assert trial.data.tags["lrsearch.trial_state"] == "COMPLETE"
    assert trial.data.metrics["train/loss"] == 1.0
    assert folders(study) == set()


def test_a_run_that_was_let_go_of_is_not_put_away_under_its_next_writer(
    study: MlflowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender has seen that a run is done; before it acts, that run is another's."""
    first = study.child("trial", uid="mine-0")
    with monkeypatch.context() as hurry:
        hurry.setattr("lrsearch_integrations.mlflow_run.WAIT_SECONDS", 0.0)
        first.leave()
    heir = study.child("trial", uid="mine-0")
    heir.log_metrics({"train/loss": 1.0}, 1)
    study._sender.forget(first._delivery)
    heir.finish("complete")
    study.finish("complete")
    trial = trial_of(study)
    assert (trial.info.status, trial.data.metrics) == ("FINISHED", {"train/loss": 1.0})


def test_a_study_that_somebody_goes_on_with_is_not_put_away_with_its_last_trial(
    study: MlflowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = study._sender.spool
    parent = replace(header(study, "other"), parent="")
    ended = spool.begin(parent)
    ended.write("e", "left", 1)
    ended.set_mark(Mark("id", "7", offset=ended.size, closed=True))
    ended.release()
    true = SpooledRun.acquire

    def acquire(self: SpooledRun) -> bool:
        if self.folder == ended.folder:
            monkeypatch.setattr(SpooledRun, "acquire", true)
            again = spool.begin(parent)  # between the look at it and the lock
            again.write("t", {"a": "1"})
            again.release()
        return true(self)

    monkeypatch.setattr(SpooledRun, "acquire", acquire)
    child = spool.begin(replace(header(study, "other-0"), parent="other"))
    sender = study._sender
    sender.forget(Delivery(child, sender.connection, sender.run_id_of))
    kept = spool.find("other")
    assert kept is not None
    assert list(kept.records())[-1] == ["t", {"a": "1"}]
    assert kept.acquire()
    kept.remove()
    study.finish("complete")


def test_sync_passes_over_what_another_process_has_put_away_meanwhile(
    study: MlflowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uid in ("mine-0", "mine-1", "mine-2"):
        die(study, uid)
    true_sent, true_acquire = mlflow_sync._sent, SpooledRun.acquire

    def sent(*arguments: Any) -> bool:
        monkeypatch.setattr(mlflow_sync, "_sent", true_sent)
        put_away(study, "mine-1")  # listed, and not looked at yet
        return true_sent(*arguments)

    def acquire(self: SpooledRun) -> bool:
        if self.folder.name == "mine-2":
            monkeypatch.setattr(SpooledRun, "acquire", true_acquire)
            put_away(study, "mine-2")  # looked at, and not locked yet
        return true_acquire(self)

    monkeypatch.setattr(mlflow_sync, "_sent", sent)
    monkeypatch.setattr(SpooledRun, "acquire", acquire)
    assert sync(study._sender) == (1, 0, 1)
    assert folders(study) == {"mine"}
    study.finish("complete")


def test_a_study_is_opened_though_its_last_record_is_just_being_put_away(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = SpooledRun(Spool(spool_folder(store_uri)).folder / "mine")
    going.folder.mkdir(parents=True)
    assert going.acquire()
    true = time.sleep

    def sleep(seconds: float) -> None:
        going.remove()
        true(seconds)

    monkeypatch.setattr("lrsearch_integrations.mlflow_tracker.time.sleep", sleep)
    with open_study_run(
        experiment="digits", name="study", tracking_uri=store_uri, uid="mine"
    ) as study:
        assert study.uid == "mine"
    assert folders(study) == set()
