"""Storages are opened by a URL, and what is wrong with one is told in a line."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from postgres import PostgresServer

from lrsearch.errors import InvalidArgumentError, LrsearchError, MissingPackageError
from lrsearch.studies.journal import SharedJournal
from lrsearch.studies.patient_storage import PatientStorage
from lrsearch.studies.storages import masked, open_storage, require_shared


@pytest.mark.parametrize("form", ["journal:{}/runs/a", "journal://{}/runs/a", "{}/runs/a.journal"])
def test_a_journal_is_opened_by_its_path_and_its_folder_made(form: str, tmp_path: Path) -> None:
    storage = open_storage(form.format(tmp_path))
    assert isinstance(storage, PatientStorage)
    assert isinstance(storage.wrapped, SharedJournal)
    optuna.create_study(storage=storage, study_name="s")
    assert sorted(each.name for each in (tmp_path / "runs").glob("a*"))[0].startswith("a")
    again = optuna.load_study(study_name="s", storage=open_storage(form.format(tmp_path)))
    assert again.trials == []


def test_a_journal_may_lie_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(storage=open_storage("journal:a"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    study.ask()  # the working directory of the moment it was opened counts
    assert (tmp_path / "a").exists()


def test_a_database_is_opened_by_its_url(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}")
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=2)
    assert len(study.trials) == 2
    storage.wrapped._backend.engine.dispose()  # type: ignore[attr-defined]


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("journal:", "names no file"),
        ("study.db", "Could not parse SQLAlchemy URL"),
        ("oracel://me:secret@host/db", "sqlalchemy.dialects:oracel"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        ("redis://localhost", "redis"),
        ("grpc://localhost", "write grpc://HOST:PORT"),
        ("journal:/proc/version", "is no Optuna journal|cannot be opened"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(url: str, says: str) -> None:
    with pytest.raises(LrsearchError, match=says) as told:
        open_storage(url)
    assert "\n" not in str(told.value)
    assert "secret" not in str(told.value)


def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(MissingPackageError, match=r"No module named 'oracledb'"):
        open_storage("oracle+oracledb://me@host/db")


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    pytest.importorskip("psycopg2")
    url = f"postgresql://me:se/cret@127.0.0.1:{closed_port()}/db"
    with pytest.raises(InvalidArgumentError, match=r"me:\*\*\*@127.*refused.*write journal:PATH"):
        open_storage(url)


def test_a_proxy_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grpc")
    monkeypatch.setattr("lrsearch.studies.storages._CONNECT_SECONDS", 0.2)
    with pytest.raises(InvalidArgumentError, match="cannot be opened"):
        open_storage(f"grpc://127.0.0.1:{closed_port()}")


def test_workers_that_begin_a_database_together_all_come_through(
    postgres_server: PostgresServer,
) -> None:
    url = postgres_server.create_database("together")
    together = threading.Barrier(4)

    def work(_: int) -> None:
        together.wait()
        storage = open_storage(url)
        study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
        study.tell(study.ask(), 1.0)
        storage.wrapped._backend.engine.dispose()  # type: ignore[attr-defined]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    storage = open_storage(url)
    assert len(optuna.load_study(study_name="s", storage=storage).trials) == 4
    storage.wrapped._backend.engine.dispose()  # type: ignore[attr-defined]


def test_a_password_is_masked_also_with_a_slash_in_it() -> None:
    assert masked("postgresql://me:a/b@host/db") == "postgresql://me:***@host/db"
    assert masked("sqlite:///a.db") == "sqlite:///a.db"
    assert masked("grpc://host:13000") == "grpc://host:13000"
    assert masked(None) is None


@pytest.mark.parametrize("url", [None, "sqlite:///a.db", "sqlite+pysqlite:///a.db"])
def test_workers_are_refused_a_storage_that_they_cannot_share(url: str | None) -> None:
    require_shared(url, 1)
    with pytest.raises(InvalidArgumentError, match=r"workers=2 cannot share .*journal:PATH"):
        require_shared(url, 2)


@pytest.mark.parametrize("url", ["journal:a", "a.journal", "postgresql://h/db", "grpc://h:1"])
def test_workers_may_share_the_others(url: str) -> None:
    require_shared(url, 8)
