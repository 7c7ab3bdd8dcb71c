"""A storage that waits while the one behind it is away: a server restarts, a disk is unmounted."""

from __future__ import annotations

import errno
import functools
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from lrsearch.errors import require_not_negative

_logger = logging.getLogger("lrsearch")

_SHORTEST_NAP_SECONDS = 0.1
_LONGEST_NAP_SECONDS = 5.0

# What a network disk or a full one says. A file that was there and is not, is on a disk that is
# not mounted; what a user got wrong is told when the storage is opened, without patience.
_AWAY: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ENOENT", "ENOSPC", "EDQUOT", "ENODEV", "ENXIO", "EROFS"),
        *("ENOLCK", "EAGAIN", "EBUSY", "EINTR", "EREMOTEIO", "ENOLINK", "ENETDOWN", "ENETUNREACH"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN", "ESHUTDOWN", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
)


def is_away(error: BaseException) -> bool:
    """Whether ``error`` says that a storage cannot be reached now, and not that a call was wrong.

    So say: a database whose connection failed or broke (also while it starts or stops), a SQLite
    file that is locked, a gRPC proxy that does not answer or whose own database is away, and the
    errors of a disk that is full or gone.
    """
    if isinstance(error, OSError):  # also ConnectionError and TimeoutError
        return isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _AWAY
    if isinstance(error, StorageInternalError):  # what Optuna makes of any database error
        return error.__cause__ is not None and is_away(error.__cause__)
    return _database_is_away(error) or _proxy_is_away(error)


def _database_is_away(error: BaseException) -> bool:
    if "sqlalchemy" not in sys.modules:
        return False
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
    from sqlalchemy.exc import TimeoutError as PoolTimeout

    if isinstance(error, OperationalError):
        # SQLite calls a wrong statement or a missing table by the same name.
        words = str(error.orig)
        return not words.startswith("no such") and "syntax error" not in words
    if isinstance(error, (InterfaceError, PoolTimeout)):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _proxy_is_away(error: BaseException) -> bool:
    grpc = sys.modules.get("grpc")
    if grpc is None or not isinstance(error, grpc.RpcError):
        return False
    code = error.code() if hasattr(error, "code") else None
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return True
    # The server answers, and the database behind it does not; of StorageInternalError, words
    # alone come through.
    details = (error.details() if hasattr(error, "details") else None) or ""
    return code == grpc.StatusCode.UNKNOWN and "An exception is raised during the commit" in details


P = ParamSpec("P")
R = TypeVar("R")


def _patient(
    method: Callable[Concatenate[BaseStorage, P], R],
) -> Callable[Concatenate[PatientStorage, P], R]:
    """The same method, which asks the storage behind until that is there."""
    name = method.__name__

    def forwarded(self: PatientStorage, /, *args: P.args, **kwargs: P.kwargs) -> R:
        answer: R = self._ask(lambda: getattr(self.wrapped, name)(*args, **kwargs))
        return answer

    functools.update_wrapper(forwarded, method, updated=())  # it is not abstract any more
    return forwarded


class PatientStorage(BaseStorage):
    """Ask ``wrapped``, and while it is away (`is_away`) wait and ask again.

    It asks after 0.1 s, then less and less often, at the latest every 5 s; one warning says that
    it began to wait, one that it is over. Any other error goes through at once.

    A question is asked again, too, where the answer alone was lost. For most this changes nothing:
    the same value is written twice, and an end that was told already counts as told. Two questions
    are not like that: `create_new_trial` may leave a trial behind that nobody works on, and so may
    a claim (``WAITING`` to ``RUNNING``), whose second asking says that somebody else was faster.
    Such a ghost is RUNNING without a lease, and `Reaper` takes it up after its patience.

    Args:
        wrapped: any storage. It is asked by several threads if this one is.
        patience: how long to wait, in seconds, before the error of the storage is raised; 0 raises
            at once.

    Raises:
        InvalidArgumentError: if ``patience`` is negative or not finite.
    """

    def __init__(self, wrapped: BaseStorage, *, patience: float = 600.0) -> None:
        self.wrapped = wrapped
        self._patience = require_not_negative("patience", patience)
        self._lock = threading.Lock()
        self._away_since: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"wrapped": self.wrapped, "_patience": self._patience}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["wrapped"], patience=state["_patience"])  # type: ignore[misc]

    create_new_study = _patient(BaseStorage.create_new_study)
    delete_study = _patient(BaseStorage.delete_study)
    set_study_user_attr = _patient(BaseStorage.set_study_user_attr)
    set_study_system_attr = _patient(BaseStorage.set_study_system_attr)
    get_study_id_from_name = _patient(BaseStorage.get_study_id_from_name)
    get_study_name_from_id = _patient(BaseStorage.get_study_name_from_id)
    get_study_directions = _patient(BaseStorage.get_study_directions)
    get_study_user_attrs = _patient(BaseStorage.get_study_user_attrs)
    get_study_system_attrs = _patient(BaseStorage.get_study_system_attrs)
    get_all_studies = _patient(BaseStorage.get_all_studies)
    create_new_trial = _patient(BaseStorage.create_new_trial)
    set_trial_param = _patient(BaseStorage.set_trial_param)
    get_trial_id_from_study_id_trial_number = _patient(
        BaseStorage.get_trial_id_from_study_id_trial_number
    )
    get_trial_number_from_id = _patient(BaseStorage.get_trial_number_from_id)
    get_trial_param = _patient(BaseStorage.get_trial_param)
    set_trial_intermediate_value = _patient(BaseStorage.set_trial_intermediate_value)
    set_trial_user_attr = _patient(BaseStorage.set_trial_user_attr)
    set_trial_system_attr = _patient(BaseStorage.set_trial_system_attr)
    get_trial = _patient(BaseStorage.get_trial)
    get_all_trials = _patient(BaseStorage.get_all_trials)
    get_n_trials = _patient(BaseStorage.get_n_trials)
    get_best_trial = _patient(BaseStorage.get_best_trial)
    get_trial_params = _patient(BaseStorage.get_trial_params)
    get_trial_user_attrs = _patient(BaseStorage.get_trial_user_attrs)
    get_trial_system_attrs = _patient(BaseStorage.get_trial_system_attrs)
    remove_session = _patient(BaseStorage.remove_session)
    check_trial_is_updatable = _patient(BaseStorage.check_trial_is_updatable)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set the state; an end that an earlier asking told, whose answer was lost, counts."""
        asked = 0

        def call() -> bool:
            nonlocal asked
            asked += 1
            try:
                return self.wrapped.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                trial = self.wrapped.get_trial(trial_id)
                same = trial.state == state and (values is None or trial.values == list(values))
                if asked > 1 and same:
                    return True
                raise

        return self._ask(call)

    def _ask(self, call: Callable[[], R]) -> R:
        deadline = time.monotonic() + self._patience
        nap = _SHORTEST_NAP_SECONDS
        while True:
            try:
                answer = call()
            except Exception as error:
                left = deadline - time.monotonic()
                if left <= 0.0 or not is_away(error):
                    raise
                self._note_away(error)
            else:
                self._note_back()
                return answer
            # Jitter, so that the workers of a study do not come back all at once.
            time.sleep(min(nap * random.uniform(0.5, 1.0), left))
            nap = min(2.0 * nap, _LONGEST_NAP_SECONDS)

    def _note_away(self, error: Exception) -> None:
        with self._lock:
            if self._away_since is not None:
                return
            self._away_since = time.monotonic()
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        why = str(cause).strip().partition("\n")[0] or type(cause).__name__
        _logger.warning(
            "the study's storage is away (%s): asking again for up to %g s", why, self._patience
        )

    def _note_back(self) -> None:
        if self._away_since is None:  # almost always, and without the lock
            return
        with self._lock:
            since, self._away_since = self._away_since, None
        if since is not None:
            _logger.warning("the study's storage is back after %.1f s", time.monotonic() - since)
