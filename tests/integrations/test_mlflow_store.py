"""Where MLflow runs go: addresses, a first creation that stands a race, one-line refusals."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch.errors import LrsearchError
from lrsearch_integrations.mlflow_store import (
    StoreError,
    default_tracking_uri,
    experiment_id,
    open_client,
    prepare_store,
    sqlite_path,
)
from lrsearch_integrations.mlflow_tracker import open_study_run


def test_by_default_runs_go_to_mlruns_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_tracking_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


def test_the_environment_names_the_store_and_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    assert default_tracking_uri() == f"sqlite:///{tmp_path}/here.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert default_tracking_uri() == "http://tracking.example:5000"


def test_artifacts_lie_beside_the_database_whatever_the_working_directory(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with open_study_run(experiment="my digits/1", name="study", tracking_uri=store_uri) as run:
        run.log_table("table", pd.DataFrame({"a": [1]}))
    found = list((tmp_path / "mlruns" / "artifacts" / "my_digits_1").rglob("table.csv"))
    assert len(found) == 1
    assert list(elsewhere.iterdir()) == []


def test_the_store_writes_ahead_so_that_workers_write_side_by_side(store_uri: str) -> None:
    import sqlite3

    prepare_store(store_uri)
    path = sqlite_path(store_uri)
    assert path is not None
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_experiment_is_created_once(store_uri: str) -> None:
    client = open_client(store_uri)
    first = experiment_id(client, "digits", store_uri)
    assert experiment_id(client, "digits", store_uri) == first


def test_a_deleted_experiment_is_told_with_its_remedy(store_uri: str) -> None:
    client = open_client(store_uri)
    client.delete_experiment(experiment_id(client, "digits", store_uri))
    with pytest.raises(StoreError, match="mlflow experiments restore"):
        open_study_run(experiment="digits", name="study", tracking_uri=store_uri)


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("./mlruns", "use sqlite:///"),
        ("sqlite:////proc/none/mlflow.db", "folder is writable"),
        ("nosuch://user:secret@host/db", "check the address"),
    ],
)
def test_a_store_that_cannot_be_opened_is_one_line_with_a_remedy(uri: str, remedy: str) -> None:
    begin = time.monotonic()
    with pytest.raises(LrsearchError) as caught:
        open_study_run(experiment="digits", name="study", tracking_uri=uri)
    message = str(caught.value)
    assert remedy in message
    assert "\n" not in message
    assert "secret" not in message
    assert uri.replace(":secret@", ":***@") in message
    assert time.monotonic() - begin < 15


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("my diary " * 500)
    with pytest.raises(StoreError, match="is a database of this MLflow"):
        prepare_store(f"sqlite:///{file}")
    assert file.read_text() == "my diary " * 500


@pytest.mark.slow
def test_two_processes_that_meet_in_a_fresh_store_both_succeed_in_silence(tmp_path: Path) -> None:
    code = """if True:
        import logging, sys
        logging.basicConfig(level=logging.INFO, format="LOGGED %(name)s %(message)s")
        from lrsearch_integrations.mlflow_tracker import open_study_run
        with open_study_run(experiment="digits", name=sys.argv[1]) as run:
            with run.child("trial") as trial:
                trial.log_metrics({"train/loss": 1.0}, 0)
        import mlflow.telemetry
        assert mlflow.telemetry.get_telemetry_client() is None
        """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "default", "-c", code, name],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for process in processes:
        out, messages = process.communicate(timeout=120)
        assert process.returncode == 0, messages
        assert (out, messages) == ("", "")
    client = open_client(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    experiments = client.search_experiments(filter_string="name = 'digits'")
    assert len(experiments) == 1
    runs = client.search_runs([experiments[0].experiment_id])
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
