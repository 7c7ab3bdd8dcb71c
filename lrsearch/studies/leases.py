"""A worker's hold on its trial, renewed while it lives.

Optuna's heartbeat is for relational databases alone, and for ``study.optimize`` alone. A lease is
an attribute of the trial, so every storage has it. What a worker does::

    lease = Lease(study, worker)
    trial = study.ask()
    if lease.hold(trial):           # False: somebody else was faster, ask again
        try:
            value = train(trial)    # may look at lease.lost, to stop early
            if lease.still_mine():
                study.tell(trial, value)
        finally:
            lease.release()

`Reaper` finds the trials whose worker died, and queues them again.

**Exactly one worker tells a trial.** The storages' one atomic step is the claim, from WAITING to
RUNNING, and a finished trial cannot be told again. All else may be late: a reaper that was slow
queues a trial again that a third worker has just claimed, and a fourth claims it, too. Then the
lease decides. Whoever finds another's (or none) in place of its own has lost the trial, and does
not tell it; if both look at once, the storage refuses the second end.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.errors import require_positive
from lrsearch.studies.attributes import LEASE, LEASED
from lrsearch.studies.patient_storage import is_away
from lrsearch.studies.processes import Process, this_process

_logger = logging.getLogger("lrsearch")


class LeaseRecord(NamedTuple):
    """What `LEASE` says of a trial, below 300 bytes.

    Attributes:
        worker: who holds it.
        key: of this one hold: a worker may lose a trial and claim it again.
        beat: how often it was renewed.
        process: where the worker lives.
    """

    worker: str
    key: str
    beat: int
    process: Process

    def as_attribute(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return {
            "worker": self.worker,
            "key": self.key,
            "beat": self.beat,
            **self.process._asdict(),
        }


def read_lease(trial: FrozenTrial) -> LeaseRecord | None:
    """The lease on a trial; None if it has none, or something that is no lease."""
    kept = trial.user_attrs.get(LEASE)
    if not isinstance(kept, Mapping):
        return None
    try:
        process = Process(**{name: kept[name] for name in Process._fields})
        return LeaseRecord(kept["worker"], kept["key"], int(kept["beat"]), process)
    except (KeyError, TypeError, ValueError):
        return None


def use_leases(study: optuna.Study) -> None:
    """Note that every worker of ``study`` holds a lease: a trial without one may be reaped."""
    if not study._storage.get_study_user_attrs(study._study_id).get(LEASED):
        study._storage.set_study_user_attr(study._study_id, LEASED, True)


class Lease:
    """The hold of one worker on one trial at a time.

    A thread renews it. A storage that is away does not end it: the thread goes on when the storage
    is back, and until then nobody else can see that a beat is missing.

    Args:
        study: whose trials are held.
        worker: name of the worker, at most 64 characters of it are kept.
        beat_seconds: between two beats; at most a sixth of the reapers' ``lease_seconds``.
        on_beat: called in the thread after each beat by which the trial is still held. What it
            raises is logged and forgotten.

    Raises:
        InvalidArgumentError: if ``beat_seconds`` is not positive.

    Attributes:
        lost: set when the trial was found to be somebody else's, or finished by another.
    """

    def __init__(
        self,
        study: optuna.Study,
        worker: str,
        *,
        beat_seconds: float = 10.0,
        on_beat: Callable[[], None] | None = None,
    ) -> None:
        self.lost = threading.Event()
        self._storage = study._storage
        self._study_id = study._study_id
        self._worker = str(worker)[:64]
        self._beat_seconds = require_positive("beat_seconds", beat_seconds)
        self._on_beat = on_beat
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._trial_id: int | None = None
        self._record = LeaseRecord(self._worker, "", 0, this_process())

    def hold(self, trial: Trial | int) -> bool:
        """Take the lease on a trial that was just claimed, and keep it until `release`.

        Args:
            trial: as ``study.ask`` gives it, or its number.

        Returns:
            Whether the trial is this worker's; if not, leave it alone and ask for another.
        """
        if isinstance(trial, Trial):
            return self.hold_id(trial._trial_id)
        number = trial
        return self.hold_id(
            self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        )

    def hold_id(self, trial_id: int) -> bool:
        """Take the lease on a trial by its id in the storage, as `hold` does."""
        self.release()
        # Threads look at the event and the flag of the hold that they were started for.
        self.lost, self._stop = threading.Event(), threading.Event()
        self._record = LeaseRecord(self._worker, uuid.uuid4().hex[:12], 0, this_process())
        found = self._storage.get_trial(trial_id)
        if found.state != TrialState.RUNNING or read_lease(found) is not None:
            self.lost.set()
            return False
        self._trial_id = trial_id
        try:
            self._write(self._record)
            held = self.still_mine()
        except UpdateFinishedTrialError:
            held = False
        if not held:
            self.lost.set()
            self._trial_id = None
            return False
        threading.Thread(
            target=self._keep, args=(self._stop,), name="lrsearch-lease", daemon=True
        ).start()
        return True

    def still_mine(self) -> bool:
        """Whether the storage says that this worker holds the trial: ask just before telling."""
        if self._trial_id is None or self.lost.is_set():
            return False
        if self._is_mine(self._storage.get_trial(self._trial_id)):
            return True
        self.lost.set()
        return False

    def release(self) -> None:
        """Hold the trial no longer. One that was not told is left to the reapers."""
        with self._lock:  # a beat that is under way ends first
            self._stop.set()
            trial_id, self._trial_id = self._trial_id, None
            if trial_id is None:
                return
            try:
                if self._is_mine(self._storage.get_trial(trial_id)):
                    self._storage.set_trial_user_attr(trial_id, LEASE, None)
            except (KeyError, UpdateFinishedTrialError):
                pass  # finished in between, or deleted with its study
            except Exception as error:
                if not is_away(error):
                    raise

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _keep(self, stop: threading.Event) -> None:
        while not stop.wait(self._beat_seconds):
            with self._lock:
                if stop.is_set() or not self._beat_on():
                    return
            if self._on_beat is not None:
                try:
                    self._on_beat()
                except Exception:
                    _logger.warning("a lease's on_beat failed", exc_info=True)

    def _beat_on(self) -> bool:
        """Renew the lease; False if it is lost."""
        assert self._trial_id is not None
        try:
            found = self._storage.get_trial(self._trial_id)
            if self._is_mine(found):
                self._record = self._record._replace(beat=self._record.beat + 1)
                self._write(self._record)
                return True
            if not found.state.is_finished():
                self._withdraw(found)
        except (KeyError, UpdateFinishedTrialError):
            pass  # deleted with its study, or finished
        except Exception as error:
            if not is_away(error):
                _logger.warning("a lease could not be renewed, and is tried again", exc_info=True)
            return True
        self.lost.set()
        return False

    def _withdraw(self, found: FrozenTrial) -> None:
        """Take the own lease away from a trial that waits in the queue again.

        A beat that was under way while a reaper queued the trial may have put it there. Left, it
        would keep out whoever claims the trial next.
        """
        kept = read_lease(found)
        if kept is not None and kept.key == self._record.key:
            self._storage.set_trial_user_attr(found._trial_id, LEASE, None)

    def _is_mine(self, trial: FrozenTrial) -> bool:
        kept = read_lease(trial)
        return (
            trial.state == TrialState.RUNNING and kept is not None and kept.key == self._record.key
        )

    def _write(self, record: LeaseRecord) -> None:
        assert self._trial_id is not None
        self._storage.set_trial_user_attr(self._trial_id, LEASE, record.as_attribute())
