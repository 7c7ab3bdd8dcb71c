"""MLflow for code that is not lrsearch's: a plain Optuna study, or a loop in an open MLflow run.

Example:
    The study's run with a nested run for each trial, whatever the storage, ``n_jobs``, and the
    number of processes::

        with MLflowTracker(experiment="digits") as tracker:
            study.optimize(objective, n_trials=50, callbacks=[tracker])
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, get_args

import optuna
from optuna.trial import FrozenTrial

from lrsearch.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    LrsearchError,
    require_choice,
)
from lrsearch.tracking import NullRun, RunStatus, RunTracker
from lrsearch_integrations.mlflow_api import active_run, get_tracking_uri
from lrsearch_integrations.mlflow_connection import Connection
from lrsearch_integrations.mlflow_sender import Sender
from lrsearch_integrations.mlflow_store import (
    absolute_uri,
    context_tags,
    default_tracking_uri,
    open_client,
    shown,
    spool_folder,
)
from lrsearch_integrations.mlflow_study import StudyLog
from lrsearch_integrations.mlflow_sync import sync
from lrsearch_integrations.mlflow_tracker import MlflowRun, attach_run
from lrsearch_integrations.optuna_words import STATUS, study_key
from lrsearch_integrations.spool import RunTakenError, Spool

# How often a study's last state is written again, while other processes go on with it.
_REFRESHES = 3

logger = logging.getLogger("lrsearch")


class NoActiveRunError(LrsearchError, RuntimeError):
    """No MLflow run is open in this thread."""


class MLflowTracker:
    """Records Optuna studies in MLflow: a callback for ``study.optimize``.

    A study gets one run, which all processes share that work on it, now or later. Each finished
    trial gets a nested run with its parameters, attributes, values, all intermediate values, its
    own times and its true status: FINISHED, KILLED (pruned) or FAILED. Nothing waits for the store
    while trials run; trouble with it costs a warning, never a trial.

    As a context manager it closes itself; without, Python's exit does.

    Args:
        experiment: created if the store has none of this name.
        name: how the study's run is shown; None means the study's own name.
        tracking_uri: the store; None means ``MLFLOW_TRACKING_URI``, else ``./mlruns/mlflow.db``.
        tags: short texts for the study's run.
        intermediate: name of the metric that gets what trials report.

    Raises:
        TypeError, ValueError: if an argument is not what is said here.
        StoreError: if the address is not that of a store.
    """

    def __init__(
        self,
        experiment: str = "lrsearch",
        name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, object] | None = None,
        *,
        intermediate: str = "intermediate_value",
    ) -> None:
        self._experiment = _required("experiment", experiment)
        self._name = None if name is None else _required("name", name)
        self._intermediate = _required("intermediate", intermediate)
        if tags is not None and not isinstance(tags, Mapping):
            raise InvalidTypeError(f"tags must be a mapping, got {tags!r}")
        self._tags = dict(tags or {})
        self._uri = (
            default_tracking_uri()
            if tracking_uri is None
            else absolute_uri(_required("tracking_uri", tracking_uri))
        )
        self._warned: set[str] = set()
        self._logs: dict[str, StudyLog] = {}
        self._keys: weakref.WeakKeyDictionary[optuna.Study, str] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._sender = self._open()
        _trackers.add(self)

    @property
    def tracking_uri(self) -> str:
        """The store that holds the runs."""
        return self._uri

    @classmethod
    def active(cls) -> MlflowRun:
        """The MLflow run that is open in this thread, as a tracker for ``ExpTest(tracker=...)``.

        The run stays its owner's to close, and MLflow's own state is left as it is. Values arrive
        within seconds, when ``ExpTest`` stops, and at Python's exit, also after the run's end;
        ``with MLflowTracker.active() as run:`` has everything delivered when its body ends, the
        table of all steps' losses included.

        Raises:
            NoActiveRunError: if no run is open in this thread.
            StoreError: if its store cannot be opened.
        """
        run = active_run()
        if run is None:
            raise NoActiveRunError(
                "no MLflow run is active in this thread: call MLflowTracker.active() inside "
                "`with mlflow.start_run():`"
            )
        return attach_run(run.info.run_id, get_tracking_uri())

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Record a trial that has ended: the callback."""
        with self._forgiving():
            log = self._log(study)
            if trial.state in STATUS:
                log.record(study, trial)
            log.show(study)

    @contextlib.contextmanager
    def trial(self, trial: optuna.Trial) -> Iterator[RunTracker]:
        """Open a trial's run inside the objective, for what it wants to log itself.

        The callback, ``record`` or ``close`` completes this run; there is no second one.

        Args:
            trial: what the objective is called with.

        Raises:
            InvalidTypeError: if trial is something else.
        """
        if not isinstance(trial, optuna.Trial):
            raise InvalidTypeError(
                f"trial must be the optuna.Trial of an objective, got {type(trial).__name__}"
            )
        run: RunTracker = NullRun()
        with self._forgiving():
            run = self._log(trial.study).open(trial)
        try:
            yield run
        finally:
            run.log_params(trial.params)

    def record(self, study: optuna.Study) -> int:
        """Record every finished trial that is not in the store yet, whoever ran it.

        For studies that ran without the callback, trials that failed without ``catch``, and those
        of workers that are gone. A second call adds nothing.

        Returns:
            How many trials were recorded.

        Raises:
            InvalidTypeError: if study is something else.
        """
        if not isinstance(study, optuna.Study):
            raise InvalidTypeError(f"study must be an optuna.Study, got {type(study).__name__}")
        count = 0
        with self._forgiving():
            trials = study.get_trials(deepcopy=False, states=tuple(STATUS))
            if trials:
                log = self._log(study)
                stored = log.stored()
                for trial in trials:
                    with contextlib.suppress(RunTakenError):  # whoever runs it records it
                        count += log.record(study, trial, stored)
                log.show(study, now=True)
        return count

    def close(self, status: RunStatus = "complete") -> None:
        """Complete the studies' runs with tables of their trials, and wait for the store.

        It waits as long as the store gets on with what there is. The tracker may be used again: a
        study's run then goes on.

        Args:
            status: how the studies ended.

        Raises:
            InvalidArgumentError: if the status is not one of ``RunStatus``.
        """
        require_choice("status", status, get_args(RunStatus))
        if self._process != os.getpid():
            return  # a forked copy: the runs belong to the parent process
        with self._lock:
            logs, self._logs = self._logs, {}
        for log in logs.values():
            with self._forgiving():
                log.complete()
        for _ in range(_REFRESHES):
            if not (logs and self._sender.drain() and self._refresh(list(logs.values()))):
                break
        for log in logs.values():
            log.run.finish(status)

    def __enter__(self) -> MLflowTracker:
        """Return the tracker itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the studies' runs; as failed if the body has raised, which no callback hears of."""
        if kind is not None:
            for log in list(self._logs.values()):
                self.record(log.study)
        self.close("complete" if kind is None else "failed")

    def _refresh(self, logs: list[StudyLog]) -> bool:
        """Whether some study has gone on while its last state was on its way."""
        outdated = []
        with self._forgiving():
            outdated = [log for log in logs if log.outdated]
            for log in outdated:
                log.refresh()
        return bool(outdated)

    def _open(self) -> Sender:
        spool = Spool(spool_folder(self._uri))
        context_tags()  # asks git, which takes long: not while a trial waits
        return Sender(Connection(open_client(self._uri), self._uri), spool)

    def _log(self, study: optuna.Study) -> StudyLog:
        if self._process != os.getpid():  # a forked copy gets a client and runs of its own
            self._process, self._lock, self._logs = os.getpid(), threading.RLock(), {}
            self._sender = self._open()
        with self._lock:
            key = self._keys.get(study) or study_key(study)
            self._keys[study] = key
            if key not in self._logs:
                self._logs[key] = StudyLog(
                    self._sender,
                    study,
                    key,
                    experiment=self._experiment,
                    name=self._name or study.study_name,
                    tags=self._tags,
                    intermediate=self._intermediate,
                )
                threading.Thread(
                    target=sync, args=(self._sender,), kwargs={"patience": 60.0}, daemon=True
                ).start()
            return self._logs[key]

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Trouble in here is the tracker's own: each kind is told once, in one line."""
        try:
            yield
        except Exception as error:  # the study must go on, whatever it is
            kind = type(error).__name__
            if kind not in self._warned:
                self._warned.add(kind)
                reason = shown(str(error).partition("\n")[0])[:200]
                logger.warning(
                    "MLflow tracking of a study failed; it goes on: %s: %s", kind, reason
                )


def _required(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidTypeError(f"{name} must be a text, got {value!r}")
    if not value.strip():
        raise InvalidArgumentError(f"{name} must not be empty")
    return value


_trackers: weakref.WeakSet[MLflowTracker] = weakref.WeakSet()


@atexit.register  # after the tracker's runs registered theirs, so before them
def _close_trackers() -> None:
    broken = hasattr(sys, "last_type") and not hasattr(sys, "ps1")
    for tracker in list(_trackers):
        tracker.close("failed" if broken else "complete")
