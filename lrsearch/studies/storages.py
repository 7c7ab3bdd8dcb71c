"""Where a study is kept: opened by a URL, and fit for the workers that share it."""

from __future__ import annotations

import random
import re
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage

from lrsearch.errors import InvalidArgumentError, LrsearchError, MissingPackageError
from lrsearch.studies.journal import JournalFile, SharedJournal
from lrsearch.studies.patient_storage import PatientStorage

_CONNECT_SECONDS = 10
_CREATIONS = 10
_WRITE = (
    "write journal:PATH, a URL of a database such as postgresql://USER:PASSWORD@HOST/NAME or "
    "sqlite:///PATH, or grpc://HOST:PORT"
)
# What libpq does about a server whose machine is gone without a word: left alone, it waits hours.
_LIBPQ = {
    "connect_timeout": _CONNECT_SECONDS,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


def open_storage(url: str, *, patience: float = 600.0) -> BaseStorage:
    """Open the storage of studies that ``url`` names.

    * ``journal:PATH``, or a plain path that ends in ``.journal``: a file that the processes of one
      machine, or of a network disk, append to. Its folder is created. A killed worker leaves
      neither a lock nor a torn line behind (`JournalFile`).
    * ``grpc://HOST:PORT``: a server of Optuna's ``run_grpc_proxy_server``.
    * any URL of a database that SQLAlchemy knows: PostgreSQL, MySQL, ``sqlite:///PATH``.

    What cannot be reached now is an error at once, since it is most likely misspelt; what goes
    away later is waited for (`PatientStorage`).

    Args:
        url: as above.
        patience: how long each question waits, in seconds, for a storage that went away.

    Raises:
        InvalidArgumentError: if the storage cannot be opened, with the reason and what to write.
        MissingPackageError: if the driver of the database, or grpcio, is not installed.
    """
    try:
        return PatientStorage(_opened(url), patience=patience)
    except LrsearchError:
        raise
    except ImportError as error:
        raise MissingPackageError(
            f"storage {masked(url)!r} needs a package that is not installed ({_why(error, url)}): "
            "pip install psycopg2-binary for postgresql://, pymysql for mysql+pymysql://, "
            "grpcio and protobuf for grpc://"
        ) from error
    except Exception as error:  # whatever the driver of a database raises
        raise InvalidArgumentError(
            f"storage {masked(url)!r} cannot be opened ({_why(error, url)}): {_WRITE}"
        ) from error


def require_shared(url: str | None, workers: int) -> None:
    """Refuse a storage that ``workers`` processes cannot share.

    SQLite lets two workers claim the same queued trial, since it cannot lock a row: of 40 trials,
    six processes ran eleven to sixteen twice. In memory, nobody else sees the study.

    Args:
        url: as `open_storage` takes it; None is in memory.
        workers: how many work at the same time.

    Raises:
        InvalidArgumentError: if there is more than one, and the storage is SQLite or in memory.
    """
    if workers <= 1:
        return
    if url is None:
        came, why = "no storage", "a study in memory is seen by one process alone"
    elif re.match(r"sqlite[+:]", url):
        came, why = f"storage={masked(url)!r}", "SQLite lets two workers run the same trial"
    else:
        return
    raise InvalidArgumentError(
        f"workers={workers} cannot share {came}: {why}; use storage='journal:PATH' on one machine "
        "or a network disk, postgresql://..., or grpc://HOST:PORT"
    )


def local_file(url: str) -> Path | None:
    """The file of this machine, or of a network disk, that ``url`` names; None if none."""
    if url.startswith("journal:") or (url.endswith(".journal") and "://" not in url):
        return _journal_path(url.removeprefix("journal:"))
    if re.match(r"sqlite[+:]", url):
        path = urlsplit(url).path.removeprefix("/")
        return Path(path).absolute() if path and path != ":memory:" else None
    return None


def masked(url: str | None) -> str | None:
    """A storage's URL without its password, for messages."""
    return None if url is None else re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _opened(url: str) -> BaseStorage:
    if url.startswith("journal:"):
        return _open_journal(url.removeprefix("journal:"))
    if url.endswith(".journal") and "://" not in url:
        return _open_journal(url)
    if url.startswith("grpc:"):
        return _open_proxy(url)
    return optuna.storages.get_storage(_open_database(_with_driver(url)))


def _open_database(url: str) -> RDBStorage:
    """Open a database; of workers that create its tables at the same time, all come through."""
    tries = 0
    while True:
        try:
            return RDBStorage(url, engine_kwargs=_engine_arguments(url))
        except Exception as error:
            tries += 1
            # By the table's name, or by an index of the server's own.
            another_creates = re.search("already exists|duplicate|UNIQUE", str(error.__cause__))
            if tries == _CREATIONS or not another_creates:
                raise
        time.sleep(random.uniform(0.05, 0.2))


def _with_driver(url: str) -> str:
    """Name the PostgreSQL driver that is installed: which one is meant by none has changed."""
    if url.startswith("postgresql://") and find_spec("psycopg") is None and find_spec("psycopg2"):
        return url.replace("postgresql://", "postgresql+psycopg2://", 1)
    return url


def _open_journal(path: str) -> BaseStorage:
    if not path.strip("/"):
        raise InvalidArgumentError("storage 'journal:' names no file: write journal:PATH")
    file = _journal_path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    return SharedJournal(JournalFile(str(file)))


def _journal_path(path: str) -> Path:
    # As in sqlite:///PATH, three slashes more or less are forgiven.
    return Path(re.sub(r"^///?(?=/)", "", path)).expanduser().absolute()


def _open_proxy(url: str) -> BaseStorage:
    place = urlsplit(url)
    if not place.hostname or not place.port or place.path.strip("/"):
        raise InvalidArgumentError(
            f"storage {masked(url)!r} names no gRPC proxy: write grpc://HOST:PORT"
        )
    from lrsearch.studies.grpc_proxy import DeadlineProxy

    host = f"[{place.hostname}]" if ":" in place.hostname else place.hostname
    with warnings.catch_warnings():  # that it is experimental, the docs of this room say
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = DeadlineProxy(host=host, port=place.port)
    try:
        proxy.wait_server_ready(timeout=_CONNECT_SECONDS)
    except BaseException:
        proxy.close()
        raise
    return proxy


def _engine_arguments(url: str) -> dict[str, Any]:
    if re.match(r"sqlite[+:]", url):
        return {}
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    if re.match(r"postgresql(\+psycopg2?)?:", url):
        given = urlsplit(url).query
        arguments["connect_args"] = {
            name: value for name, value in _LIBPQ.items() if f"{name}=" not in given
        }
    return arguments


def _why(error: Exception, url: str) -> str:
    wrapper = isinstance(error, (optuna.exceptions.StorageInternalError, ImportError))
    cause = error.__cause__ if wrapper and error.__cause__ else error
    first = str(cause).strip().partition("\n")[0] or type(cause).__name__
    return first.replace(url, masked(url) or "")
