"""A storage that goes away in the middle of a study costs time alone."""

from __future__ import annotations

import errno
import inspect
import logging
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy.exc
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

from lrsearch.errors import InvalidArgumentError
from lrsearch.studies import patient_storage
from lrsearch.studies.patient_storage import PatientStorage, is_away
from lrsearch.studies.storages import open_storage


@pytest.fixture(autouse=True)
def short_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_storage, "_SHORTEST_NAP_SECONDS", 0.001)


class TestPatientJournal(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> BaseStorage:
        return open_storage(f"journal:{tmp_path / 'j'}")


class Flaky(InMemoryStorage):
    """Fails the next ``failures`` questions with ``error``, before or after it obeys."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error or ConnectionResetError("gone")
        self.failures = 0
        self.loses_answers = False

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not hasattr(BaseStorage, name) or name.startswith("_"):
            return found

        def asked(*args: Any, **kwargs: Any) -> Any:
            fails, self.failures = self.failures > 0, max(0, self.failures - 1)
            if fails and not self.loses_answers:
                raise self.error
            answer = found(*args, **kwargs)
            if fails:
                raise self.error
            return answer

        return asked


def operational(words: str) -> sqlalchemy.exc.OperationalError:
    return sqlalchemy.exc.OperationalError("SELECT 1", {}, sqlite3.OperationalError(words))


def wrapped_by_optuna(cause: Exception) -> StorageInternalError:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = cause
    return error


AWAY = [
    operational("database is locked"),
    wrapped_by_optuna(operational("server closed the connection unexpectedly")),
    sqlalchemy.exc.InterfaceError("SELECT 1", {}, sqlite3.InterfaceError("connection closed")),
    sqlalchemy.exc.DBAPIError("SELECT 1", {}, sqlite3.Error(), connection_invalidated=True),
    OSError(errno.ESTALE, "stale"),
    OSError(errno.EIO, "disk"),
    OSError(errno.ENOSPC, "full"),
    FileNotFoundError(errno.ENOENT, "unmounted"),
    ConnectionRefusedError(),
]
WRONG = [
    KeyError("no such study"),
    ValueError("x"),
    TypeError("x"),
    DuplicatedStudyError("s"),
    UpdateFinishedTrialError("t"),
    PermissionError(errno.EACCES, "denied"),
    operational("no such table: studies"),
    wrapped_by_optuna(sqlalchemy.exc.DataError("INSERT", {}, sqlite3.DataError("too long"))),
    StorageInternalError("of no database"),
]


@pytest.mark.parametrize("error", AWAY, ids=repr)
def test_what_may_pass_is_waited_for(error: Exception) -> None:
    flaky = Flaky(error)
    study = optuna.create_study(storage=PatientStorage(flaky))
    flaky.failures = 4
    assert study.ask().number == 0


@pytest.mark.parametrize("error", WRONG, ids=repr)
def test_what_will_not_pass_is_raised_at_once(error: Exception) -> None:
    flaky = Flaky(error)
    storage = PatientStorage(flaky)
    flaky.failures = 1
    with pytest.raises(type(error)):
        storage.get_all_studies()
    assert flaky.failures == 0
    assert storage.get_all_studies() == []


def test_a_proxy_s_answer_that_its_database_is_away_is_waited_for() -> None:
    grpc = pytest.importorskip("grpc")

    class Answer(grpc.RpcError):  # type: ignore[misc]
        def __init__(self, code: Any, details: str = "") -> None:
            self.code, self.details = lambda: code, lambda: details

    status = grpc.StatusCode
    assert is_away(Answer(status.UNAVAILABLE))
    assert is_away(Answer(status.DEADLINE_EXCEEDED))
    assert not is_away(Answer(status.UNKNOWN, "Exception calling application: x"))
    assert not is_away(Answer(status.RESOURCE_EXHAUSTED))
    # The words are Optuna's own, as a broken SQLite file makes it say them.
    broken = optuna.storages.RDBStorage("sqlite://", skip_compatibility_check=True)
    broken.engine.dispose()
    with pytest.raises(StorageInternalError) as told:
        broken.get_all_studies()
    assert is_away(Answer(status.UNKNOWN, f"Exception calling application: {told.value}"))
    broken.engine.dispose()


def test_every_method_of_a_storage_is_forwarded() -> None:
    asked: list[str] = []

    class Spy:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args, **kwargs: asked.append(name)

    storage = PatientStorage(Spy())  # type: ignore[arg-type]
    names = [
        name for name, each in inspect.getmembers(BaseStorage, callable) if not name.startswith("_")
    ]
    for name in names:
        method = getattr(storage, name)
        needed = inspect.signature(getattr(BaseStorage, name)).parameters.values()
        method(*(None for each in list(needed)[1:] if each.default is inspect.Parameter.empty))
    assert asked == names
    assert len(names) > 25


def test_patience_ends_with_the_storage_s_own_error() -> None:
    flaky = Flaky()
    flaky.failures = 10**9
    with pytest.raises(ConnectionResetError):
        PatientStorage(flaky, patience=0.05).get_all_studies()
    assert flaky.failures < 10**9 - 2
    flaky.failures = 10**9
    with pytest.raises(ConnectionResetError):
        PatientStorage(flaky, patience=0.0).get_all_studies()
    assert flaky.failures == 10**9 - 1
    with pytest.raises(InvalidArgumentError, match="patience"):
        PatientStorage(flaky, patience=-1.0)


def test_an_outage_is_told_once_by_all_threads(caplog: pytest.LogCaptureFixture) -> None:
    flaky = Flaky()
    storage = PatientStorage(flaky)
    for _ in range(2):
        caplog.clear()
        flaky.failures = 40
        threads = [threading.Thread(target=storage.get_all_studies) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
        assert sum("is away (gone)" in each for each in said) == sum("is back" in x for x in said)
        assert 1 <= sum("is away" in each for each in said) <= 2


def test_an_end_whose_answer_was_lost_is_told_once() -> None:
    flaky = Flaky()
    storage = PatientStorage(flaky)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    flaky.loses_answers = True
    flaky.failures = 1
    assert storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0])
    # Another end, and the same end by somebody else, are refused as ever.
    for values in ([2.0], [1.0]):
        with pytest.raises(UpdateFinishedTrialError):
            storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, values)
    assert [each.value for each in study.trials] == [1.0]


def test_a_patient_storage_can_be_pickled(tmp_path: Path) -> None:
    storage = open_storage(f"journal:{tmp_path / 'j'}", patience=3.0)
    optuna.create_study(storage=storage, study_name="s")
    copy = pickle.loads(pickle.dumps(storage))
    assert optuna.load_study(study_name="s", storage=copy).ask().number == 0
    assert copy._patience == 3.0


def test_a_journal_on_a_disk_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    study = optuna.create_study(storage=open_storage(f"journal:{disk / 'j'}"))
    study.ask()
    disk.rename(tmp_path / "unmounted")
    asked = threading.Thread(target=study.ask)
    asked.start()
    time.sleep(0.1)
    assert asked.is_alive()
    (tmp_path / "unmounted").rename(disk)
    asked.join(20.0)
    assert not asked.is_alive()
    assert [each.number for each in study.trials] == [0, 1]
