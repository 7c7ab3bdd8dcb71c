"""Where MLflow runs go: the address of the store, its first creation, and its experiments.

Without ``MLFLOW_TRACKING_URI`` the store is ``mlruns/mlflow.db`` (SQLite) in the working
directory, with the artifacts beside it. The address is always absolute, so that worker processes
with another working directory write to the same place.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from lrsearch.errors import LrsearchError
from lrsearch_integrations.mlflow_api import MlflowClient, MlflowException

_SQLITE = "sqlite:///"
_LOCK_SECONDS = 120.0  # a schema takes 2 to 10 s to create
_quiet_lock = threading.RLock()


class StoreError(LrsearchError, ConnectionError):
    """The store of the runs cannot be opened.

    Attributes:
        final: whether the store has said no, so that another try would not help.
    """

    final = False


class StoreRefusalError(StoreError):
    """The store says no, now and later."""

    final = True


def default_tracking_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI`` if set, else ``mlruns/mlflow.db`` of the working directory."""
    return absolute_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlruns/mlflow.db")


def absolute_uri(uri: str) -> str:
    """Return ``uri`` such that it names the same store from every working directory."""
    path = sqlite_path(uri)
    if path is None:
        return uri
    _, mark, options = uri.partition("?")
    return f"{_SQLITE}{path.as_posix()}{mark}{options}"


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite store's file, or None for any other store."""
    if not uri.startswith(_SQLITE):
        return None
    name = uri.removeprefix(_SQLITE).partition("?")[0]
    return None if name in ("", ":memory:") else Path(name).absolute()


def shown(uri: str) -> str:
    """Return ``uri`` without the password that it may hold."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)


def open_client(uri: str) -> MlflowClient:
    """Return a client of the store at ``uri``, which is created if it is a local file.

    Raises:
        StoreError: if the store cannot be opened; one line that names it and the remedy.
    """
    prepare_store(uri)
    with explained(uri), quiet():
        return MlflowClient(tracking_uri=uri)


def prepare_store(uri: str) -> None:
    """Create the file, folder and schema of a SQLite store; leave other stores alone.

    Only one process at a time gets to do this: MLflow itself takes no lock here, and two
    processes that meet in a fresh file leave it unusable. A new file gets its name only when its
    schema is complete. The journal is set to write-ahead, which lets workers write side by side.

    Raises:
        StoreError: if the file cannot be created or is not a database.
    """
    path = sqlite_path(uri)
    if path is None:
        return
    if "%" in str(path):
        raise StoreError(f"MLflow cannot open a path with '%' in it, got {path}: move the store")
    with explained(uri), quiet():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(path.with_name(f"{path.name}.lock")):
            if not path.exists() or path.stat().st_size == 0:
                _create_database(path)
            elif not _has_schema(path):
                _create_schema(path, path)
            _set_write_ahead(path)


@contextlib.contextmanager
def alone(uri: str) -> Iterator[bool]:
    """Hold the lock of a SQLite store; gives False for any other store, which has none.

    Raises:
        StoreError: if the lock cannot be had.
    """
    path = sqlite_path(uri)
    if path is None:
        yield False
        return
    with explained(uri), _exclusive(path.with_name(f"{path.name}.lock")):
        yield True


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Return the id of the experiment called ``name``, created if absent.

    In a SQLite store its artifacts go below ``mlruns/``; a server decides for itself.

    Raises:
        StoreError: if the store does not answer, or the experiment has been deleted.
    """
    path = sqlite_path(uri)
    folder = re.sub(r"[^\w.-]+", "_", name).strip(".") or "experiment"
    location = None if path is None else str(artifact_root(path) / folder)
    with explained(uri), quiet():
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return client.create_experiment(
                    name,
                    artifact_location=location,
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
            except MlflowException:
                experiment = client.get_experiment_by_name(name)  # another process was faster
                if experiment is None:
                    raise
    if experiment.lifecycle_stage != "active":
        raise StoreRefusalError(
            f"the experiment {name!r} in {shown(uri)} has been deleted: choose another name, or "
            f"run: mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return str(experiment.experiment_id)


@functools.cache
def context_tags() -> dict[str, str]:
    """Return who runs what: user, source file and, where GitPython is installed, commit."""
    from mlflow.tracking.context.registry import resolve_tags

    try:
        with quiet():
            return {str(key): str(value) for key, value in resolve_tags().items()}
    except Exception:  # foreign plug-ins may do anything; a run without these tags is still good
        return {}


def spool_folder(uri: str) -> Path:
    """Return where runs wait for the store: ``LRSEARCH_SPOOL``, or beside a SQLite store, or here.

    "Here" is ``mlruns/spool`` in the working directory.
    """
    chosen = os.environ.get("LRSEARCH_SPOOL")
    if chosen:
        return Path(chosen).absolute()
    path = sqlite_path(uri)
    if path is None:
        return Path("mlruns", "spool").absolute()
    return artifact_root(path).with_name("spool")


def artifact_root(path: Path) -> Path:
    """Return the folder of the artifacts that belong to the SQLite store at ``path``."""
    home = path.parent if path.parent.name == "mlruns" else path.parent / "mlruns"
    return home / "artifacts"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the messages of MLflow and Alembic about their own affairs from the user.

    For opening a store only, and one thread at a time: what is changed here is process-wide.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn any failure to open the store into one line with a remedy."""
    try:
        yield
    except LrsearchError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = shown(lines[0])[:200]
        kind = StoreRefusalError if is_refusal(error) else StoreError
        raise kind(
            f"cannot open the MLflow store {shown(uri)}: {_remedy(uri)} ({reason})"
        ) from error


def is_refusal(error: Exception) -> bool:
    """Whether the store has understood the request and says no, now and later."""
    if isinstance(error, StoreError):
        return error.final
    if not isinstance(error, MlflowException):
        return False
    status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]  # unannotated
    return 400 <= status < 500 and status not in (408, 429)


def _remedy(uri: str) -> str:
    scheme = uri.partition(":")[0] if ":" in uri else "file"
    if scheme in ("http", "https"):
        return "start that server, or unset MLFLOW_TRACKING_URI to record in ./mlruns"
    if scheme == "sqlite":
        return "check that it is a database of this MLflow and that its folder is writable"
    if scheme == "file":
        return "MLflow no longer records in plain folders, use sqlite:///FOLDER/mlflow.db"
    return "check the address, and that the driver of its database is installed"


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock between processes; SQLite's own, which every system has and a crash frees."""
    connection = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.close()


def _create_database(path: Path) -> None:
    fresh = path.with_name(f"{path.name}.new")
    for leftover in (fresh, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        leftover.unlink(missing_ok=True)
    _create_schema(fresh, path)
    os.replace(fresh, path)


def _create_schema(file: Path, path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(  # type: ignore[no-untyped-call]  # MLflow left it unannotated
        f"{_SQLITE}{file.as_posix()}", str(artifact_root(path))
    )
    store.engine.dispose()


def _has_schema(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {"experiments", "alembic_version"} <= {name for (name,) in tables}


def _set_write_ahead(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal":
            with contextlib.suppress(sqlite3.OperationalError):  # busy: some other time
                connection.execute("PRAGMA journal_mode = WAL")
