"""Find the trials whose worker died, and queue them again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from lrsearch.errors import require_positive
from lrsearch.studies.attributes import ATTEMPTS, LEASE, LEASED, REASON
from lrsearch.studies.leases import LeaseRecord, read_lease
from lrsearch.studies.patient_storage import PatientStorage
from lrsearch.studies.processes import is_alive

_logger = logging.getLogger("lrsearch")

MAX_ATTEMPTS: Final = 5
"""A trial over which so many workers died is failed: it may be what kills them."""

STUCK_LEASES: Final = 10
"""A worker that is seen to live, on this machine, may miss beats for so many leases."""


@dataclass(frozen=True, slots=True)
class Reaped:
    """A trial whose worker died.

    Attributes:
        number: of the trial.
        state: WAITING if it was queued again, FAIL if too many workers died over it.
        died: how many have, this one included.
        why: what was seen, in a few words.
    """

    number: int
    state: TrialState
    died: int
    why: str


@dataclass(frozen=True, slots=True)
class _Sign:
    """What changes when a trial gets another worker, or its worker lives."""

    started: datetime | None
    key: str | None
    beat: int | None


@dataclass(frozen=True, slots=True)
class _Watch:
    sign: _Sign
    looked: float
    unchanged: float  # seconds


class Reaper:
    """Queue the trials of dead workers again, with their parameters, for any worker to claim.

    A worker is dead

    * if its process is gone, where that can be seen: on the same machine. At once;
    * else if its lease has not changed for ``lease_seconds``. On the same machine a process that
      is there is given ten times as long: it is slow, stopped, or has forgotten its trial;
    * if the trial has had no lease for ``lease_seconds``: the worker died before it took one, or
      `PatientStorage` left the trial behind.

    Time is this observer's own; the clocks of two machines are never compared. Between two looks
    at most half of ``lease_seconds`` counts, however long they lie apart, so that no worker is
    taken for dead because the storage was away: `reap` must be called at least three times, and
    best every few seconds, for a silence to count.

    Any number of reapers may look at the same time. The worst that a late one does is to take a
    trial from a living worker, who notices it before it tells (`Lease.still_mine`).

    A trial that is queued again keeps what it has: parameters, attributes, reported values. Its
    `ATTEMPTS` count the dead. After `MAX_ATTEMPTS` it is failed, with `REASON` as to why.

    Args:
        study: whose trials are looked at.
        lease_seconds: how long a silence may last; at least six times the workers' beat.
        ours: which RUNNING trials to look at at all. If None: those that have or had a lease, and
            all those of a study that notes `LEASED`. So trials that others run by hand in a plain
            Optuna study stay theirs.

    Raises:
        InvalidArgumentError: if ``lease_seconds`` is not positive.
    """

    def __init__(
        self,
        study: optuna.Study,
        lease_seconds: float = 60.0,
        *,
        ours: Callable[[FrozenTrial], bool] | None = None,
    ) -> None:
        self._study = study
        self._storage = study._storage
        self._lease_seconds = require_positive("lease_seconds", lease_seconds)
        self._ours = ours
        self._watched: dict[int, _Watch] = {}

    def reap(self) -> list[Reaped]:
        """Look at all running trials once; returns those that were taken from dead workers."""
        running = self._storage.get_all_trials(
            self._study._study_id, deepcopy=False, states=(TrialState.RUNNING,)
        )
        ours = self._ours or self._has_leases()
        now = time.monotonic()
        self._watched = {
            trial._trial_id: self._watch(trial, now) for trial in running if ours(trial)
        }
        reaped = []
        for trial in running:
            watch = self._watched.get(trial._trial_id)
            why = watch and self._why_dead(read_lease(trial), watch)
            if watch and why:
                taken = self._take(trial._trial_id, watch.sign, why)
                if taken is not None:
                    reaped.append(taken)
        return reaped

    def _has_leases(self) -> Callable[[FrozenTrial], bool]:
        attributes = self._storage.get_study_user_attrs(self._study._study_id)
        everywhere = bool(attributes.get(LEASED))
        return lambda trial: everywhere or LEASE in trial.user_attrs

    def _watch(self, trial: FrozenTrial, now: float) -> _Watch:
        sign = _sign(trial)
        before = self._watched.get(trial._trial_id)
        if before is None or before.sign != sign:
            return _Watch(sign, now, 0.0)
        passed = min(now - before.looked, 0.5 * self._lease_seconds)
        return replace(before, looked=now, unchanged=before.unchanged + passed)

    def _why_dead(self, lease: LeaseRecord | None, watch: _Watch) -> str | None:
        silent = watch.unchanged
        if lease is None:
            if silent < self._lease_seconds:
                return None
            return f"no worker held it for {silent:.0f} s"
        who = f"worker {lease.worker} (process {lease.process.pid} on {lease.process.host})"
        alive = is_alive(lease.process)
        if alive is False:
            return f"{who} is gone"
        patience = self._lease_seconds * (STUCK_LEASES if alive else 1)
        return f"{who} was silent for {silent:.0f} s" if silent >= patience else None

    def _take(self, trial_id: int, sign: _Sign, why: str) -> Reaped | None:
        """Take a trial from its dead worker; None if somebody else has, or it lives after all."""
        storage = self._storage
        try:
            trial = storage.get_trial(trial_id)
            if trial.state != TrialState.RUNNING or _sign(trial) != sign:
                return None
            died = died_over(trial) + 1
            storage.set_trial_user_attr(trial_id, ATTEMPTS, {"died": died, "last": why})
            # Before it waits: who claims it takes a lease that is left for another's.
            storage.set_trial_user_attr(trial_id, LEASE, None)
            if died < MAX_ATTEMPTS:
                state = TrialState.WAITING
                _queue(self._study, trial)
                _logger.warning(
                    "trial %d: %s; queued again (%d of %d)", trial.number, why, died, MAX_ATTEMPTS
                )
            else:
                state = TrialState.FAIL
                reason = f"its worker died {died} times"
                storage.set_trial_user_attr(trial_id, REASON, reason)
                # Its sampler is told, too; some stop the study, which raises outside of a loop.
                with suppress(RuntimeError):
                    self._study.tell(trial.number, state=state)
                _logger.warning("trial %d: %s; failed: %s", trial.number, why, reason)
        except (KeyError, UpdateFinishedTrialError):
            return None  # deleted with its study, or finished by its worker after all
        except ValueError:  # as study.tell says of a trial that another has queued
            if storage.get_trial(trial_id).state == TrialState.RUNNING:
                raise
            return None
        return Reaped(trial.number, state, died, why)


def _queue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put a running trial in the queue, where the next ``study.ask`` finds it."""
    storage = study._storage
    storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    while isinstance(storage, PatientStorage):
        storage = storage.wrapped
    if isinstance(storage, InMemoryStorage):
        # It remembers below which number nobody waits any more, and looks there no more.
        with storage._lock:
            marks = storage._prev_waiting_trial_number
            marks[study._study_id] = min(marks[study._study_id], trial.number)


def died_over(trial: FrozenTrial) -> int:
    """How many workers died over a trial."""
    kept = trial.user_attrs.get(ATTEMPTS)
    died = kept.get("died") if isinstance(kept, dict) else None
    return died if isinstance(died, int) else 0


def _sign(trial: FrozenTrial) -> _Sign:
    lease = read_lease(trial)
    if lease is None:
        return _Sign(trial.datetime_start, None, None)
    return _Sign(trial.datetime_start, lease.key, lease.beat)
