"""One Optuna study, several processes and lives: one run, each trial once."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from recorded_studies import everything, history, runs_of

from lrsearch_integrations import mlflow_delivery
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_optuna import MLflowTracker
from lrsearch_integrations.mlflow_store import experiment_id, open_client
from lrsearch_integrations.mlflow_sync import sync_spool
from lrsearch_integrations.mlflow_ui import free_port, server

optuna.logging.set_verbosity(optuna.logging.ERROR)


def pruned_after_one(trial: optuna.Trial) -> float:
    """Trial 0 is complete, the others are pruned."""
    trial.report(trial.suggest_float("x", 0.0, 1.0), 3)
    if trial.number:
        raise optuna.TrialPruned
    return 1.0


def test_a_resumed_study_goes_on_in_its_run(store_uri: str, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=storage)
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        study.optimize(pruned_after_one, n_trials=2, callbacks=[tracker])
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
        # What is sent late may be older than what is there: the counts of the process that was sent
        # last stand until somebody who knows the study writes them again.
        with MLflowTracker(tracking_uri=uri) as tracker:
            assert tracker.record(study) == 0
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


def test_two_that_create_the_studys_run_at_the_same_moment_keep_one(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither has seen the other when it creates, as on a server, which has no lock."""
    both, create = threading.Barrier(2, timeout=60), MlflowClient.create_run
    monkeypatch.setattr(mlflow_delivery, "alone", lambda uri: contextlib.nullcontext(False))
    monkeypatch.setattr(mlflow_delivery, "_SETTLE_SECONDS", 1.0)

    def create_run(self: MlflowClient, *args: Any, **more: Any) -> Any:
        if "mlflow.parentRunId" not in more["tags"]:
            both.wait()
            made.append(create(self, *args, **more))
            return made[-1]
        return create(self, *args, **more)

    made: list[Any] = []
    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    study = optuna.create_study()
    study.optimize(lambda trial: 1.0, n_trials=2)
    trackers = []
    for k in range(2):
        monkeypatch.setenv("LRSEARCH_SPOOL", str(tmp_path / f"spool-{k}"))
        trackers.append(MLflowTracker(tracking_uri=store_uri))
    for tracker, trial in zip(trackers, study.trials, strict=True):
        tracker(study, trial)
    for tracker in trackers:
        tracker.close()
    parent, trials = runs_of(store_uri)
    assert len(made) == 2
    assert parent.info.run_id == min(run.info.run_id for run in made)
    assert set(trials) == {"trial-0", "trial-1"}


def test_a_killed_workers_trials_are_completed_by_whoever_records(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=storage)
    spool = str(tmp_path / "spool")
    code = f"""if True:
        import os, optuna
        from lrsearch_integrations import MLflowTracker
        study = optuna.load_study(study_name="s", storage={storage!r})
        tracker = MLflowTracker(tracking_uri={store_uri!r})
        def objective(trial):
            trial.suggest_float("x", 0, 1)
            with tracker.trial(trial) as run:
                run.log_metrics({{"train/loss": 1.0}}, 0)
                if trial.number == 1:
                    run.run_id
                    os.kill(os.getpid(), 9)
            return 1.0
        study.optimize(objective, n_trials=2, callbacks=[tracker])
        """
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path, "LRSEARCH_SPOOL": spool}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -9
    monkeypatch.setenv("LRSEARCH_SPOOL", spool)
    sync_spool(None, store_uri)
    assert list((tmp_path / "spool").iterdir()) == []
    parent, trials = runs_of(store_uri)
    assert (parent.info.status, trials["trial-1"].info.status) == ("FAILED", "FAILED")
    study.tell(1, state=optuna.trial.TrialState.FAIL)  # as Optuna's heartbeat does
    with MLflowTracker(tracking_uri=store_uri) as tracker:
        assert tracker.record(study) == 1
    parent, trials = runs_of(store_uri)
    assert parent.info.status == "FINISHED"
    states = {name: (run.info.status, sorted(run.data.params)) for name, run in trials.items()}
    assert states == {"trial-0": ("FINISHED", ["x"]), "trial-1": ("FAILED", ["x"])}
    assert history(store_uri, trials["trial-1"], "train/loss") == [(0, 1.0)]
