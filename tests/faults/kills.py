"""Where a worker can be killed: each moment by a name, armed in the process that is to die.

What is armed is the product itself: a function is called through a wrapper that kills its own
process by SIGKILL before it, after it, or in the middle of what it writes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from optuna.trial import Trial, TrialState
from worker_tasks import Slow

from lrsearch.engine import race
from lrsearch.engine.attempt import Attempt
from lrsearch.engine.objective import Objective
from lrsearch.engine.result import DEVICE
from lrsearch.studies import journal, reaper
from lrsearch.studies.attributes import ATTEMPTS, LEASE, REASON, RUNG, WINDOW_PREFIX
from lrsearch.studies.journal import JournalFile, SharedJournal
from lrsearch.studies.leases import Lease
from lrsearch.studies.record import TrialRecorder
from lrsearch.training import checkpoints, probes
from lrsearch.training.checkpoints import Checkpoint
from lrsearch.training.outbox import Outbox
from lrsearch_integrations import mlflow_delivery, mlflow_sync, spool
from lrsearch_integrations.mlflow_api import MlflowClient

TIMER = "a moment like any other"


class Kill:
    """Kills its process when it is called for the ``nth`` time."""

    def __init__(self, nth: int) -> None:
        self._left = nth

    def due(self) -> bool:
        """Whether this is the moment, which comes once."""
        self._left -= 1
        return self._left == 0

    def now(self) -> None:
        """Kill the process: nothing of it runs any more."""
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self) -> None:
        if self.due():
            self.now()


When = Callable[..., bool]
Arm = Callable[[Kill], None]


def _always(*_: Any, **__: Any) -> bool:
    return True


def _before(owner: Any, name: str, when: When = _always) -> Arm:
    def arm(kill: Kill) -> None:
        true = getattr(owner, name)

        @wraps(true)
        def deadly(*arguments: Any, **named: Any) -> Any:
            if when(*arguments, **named):
                kill()
            return true(*arguments, **named)

        setattr(owner, name, deadly)

    return arm


def _after(owner: Any, name: str, when: When = _always) -> Arm:
    def arm(kill: Kill) -> None:
        true = getattr(owner, name)

        @wraps(true)
        def deadly(*arguments: Any, **named: Any) -> Any:
            answer = true(*arguments, **named)
            if when(*arguments, **named):
                kill()
            return answer

        setattr(owner, name, deadly)

    return arm


class _Os:
    """The module ``os`` of one module alone, with one function of it replaced."""

    def __init__(self, **replaced: Any) -> None:
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def _half_a_write(module: Any) -> Arm:
    def arm(kill: Kill) -> None:
        def write(file: int, content: Any) -> int:
            if kill.due():
                os.write(file, bytes(content)[: len(content) // 2])
                kill.now()
            return os.write(file, content)

        module.os = _Os(write=write)

    return arm


def _half_a_checkpoint(kill: Kill) -> None:
    def fsync(file: int) -> None:
        if kill.due():
            os.ftruncate(file, os.fstat(file).st_size // 2)
            kill.now()
        os.fsync(file)

    checkpoints.os = _Os(fsync=fsync)  # type: ignore[attr-defined]


def _named(end: str) -> When:
    """A renaming to such a name."""
    return lambda path, target: Path(target).name.endswith(end)


def _state(*states: TrialState) -> When:
    return lambda storage, number, state, values=None: state in states


def _whole(storage: object, study: int, template_trial: object = None) -> bool:
    """A trial that is written down after it has ended."""
    return template_trial is not None


def _attribute(begin: str, *, empty: bool | None = None) -> When:
    def when(storage: object, number: int, key: str, value: Any) -> bool:
        return key.startswith(begin) and (empty is None or empty == (value is None))

    return when


_ENDS = _state(TrialState.COMPLETE, TrialState.PRUNED)
_IN_STORAGE = "set_trial_user_attr"

# What happens in some studies alone.
_RARE = {
    "ladder, race": ("window", "rung"),
    "ladder, race, tries": ("report",),
    "race": ("probe",),
}

# How each is armed, and the last of the moments of its kind that may be drawn: early ones, so that
# a study sees many deaths.
PHASES: dict[str, tuple[Arm, int]] = {
    # The race
    "in a probe": (_before(probes, "hopeless"), 60),
    "before a probe is told to the tracker": (_before(race, "_record_probe"), 3),
    "before a probe is told to the study": (_before(SharedJournal, "create_new_trial", _whole), 3),
    "after a probe is told to the study": (_after(SharedJournal, "create_new_trial", _whole), 3),
    # Training
    "before the device is noted": (
        _before(Trial, "set_user_attr", lambda trial, key, value: key == DEVICE),
        1,
    ),
    "in a training pass": (_before(Slow, "forward", lambda model, x: model.training), 60),
    "before a window is judged": (_before(TrialRecorder, "window"), 4),
    "after a window is judged": (_after(TrialRecorder, "window"), 3),
    "before the trial is closed": (_before(Attempt, "close"), 2),
    "after the trial is closed": (_after(Attempt, "close"), 2),
    # Storage
    "after a window is written": (
        _after(Trial, "set_user_attr", lambda trial, key, value: key.startswith(WINDOW_PREFIX)),
        4,
    ),
    "after a reason is written": (_after(SharedJournal, _IN_STORAGE, _attribute(REASON)), 2),
    "before a report": (_before(Trial, "report"), 4),
    "after a report": (_after(Trial, "report"), 4),
    "before a line of the journal": (_before(JournalFile, "append_logs"), 40),
    "in a line of the journal": (_half_a_write(journal), 40),
    "after a line of the journal": (_after(JournalFile, "append_logs"), 40),
    "before a rung is taken": (_before(SharedJournal, _IN_STORAGE, _attribute(RUNG)), 1),
    "after a rung is taken": (_after(SharedJournal, _IN_STORAGE, _attribute(RUNG)), 1),
    "after a trial is claimed": (
        _after(SharedJournal, "set_trial_state_values", _state(TrialState.RUNNING)),
        1,
    ),
    "after a trial is begun": (_after(SharedJournal, "create_new_trial"), 2),
    "before the lease": (_before(Lease, "hold_id"), 2),
    "after the lease": (_after(Lease, "hold_id"), 2),
    "in a beat": (_after(Lease, "_write"), 6),
    "after the reaper has counted": (
        _after(SharedJournal, _IN_STORAGE, _attribute(ATTEMPTS)),
        1,
    ),
    "after the reaper has freed": (
        _after(SharedJournal, _IN_STORAGE, _attribute(LEASE, empty=True)),
        1,
    ),
    "after the reaper has queued": (_after(reaper, "_queue"), 1),
    "before the end is told": (_before(SharedJournal, "set_trial_state_values", _ENDS), 2),
    "after the end is told": (_after(SharedJournal, "set_trial_state_values", _ENDS), 2),
    "before the checkpoint is dropped": (_before(Objective, "discard"), 2),
    # Checkpoints and keepsakes
    "before a checkpoint": (_before(Checkpoint, "save"), 8),
    "in a checkpoint": (_half_a_checkpoint, 8),
    "before a checkpoint is renamed": (_before(Path, "replace", _named(".pt.previous")), 8),
    "between a checkpoint's two names": (_after(Path, "replace", _named(".pt.previous")), 8),
    "after a checkpoint is renamed": (_after(Path, "replace", _named(".pt")), 8),
    "after a checkpoint": (_after(Checkpoint, "save"), 8),
    "before a keepsake": (_before(Path, "replace", _named(".pickle")), 1),
    "after a keepsake": (_after(Path, "replace", _named(".pickle")), 1),
    # The record
    "before the outbox is released": (_before(Outbox, "release"), 8),
    "after the outbox is released": (_after(Outbox, "release"), 8),
    "in a line of the spool": (_half_a_write(spool), 25),
    "before the spool's header": (_before(Path, "replace", _named("run.json")), 2),
    "before the spool's mark": (_before(Path, "replace", _named("sent.json")), 10),
    "after the spool's mark": (_after(Path, "replace", _named("sent.json")), 10),
    "before a run is created": (_before(MlflowClient, "create_run"), 1),
    "after a run is created": (_after(MlflowClient, "create_run"), 1),
    "before a batch is sent": (_before(MlflowClient, "log_batch"), 10),
    "after a batch is sent": (_after(MlflowClient, "log_batch"), 10),
    "before a run is closed": (_before(MlflowClient, "set_terminated"), 1),
    "after a run is closed": (_after(MlflowClient, "set_terminated"), 1),
    "after a run's end is noted": (_after(mlflow_delivery.Delivery, "_close"), 1),
    "before a dead one's record is sent": (_before(mlflow_sync, "_sent"), 1),
    "before a run is put away": (_before(spool.SpooledRun, "remove"), 1),
    "while a run is put away": (_after(spool.SpooledRun, "clear"), 2),
    "after a closed run is taken up": (_after(MlflowClient, "update_run"), 1),
}


def may_strike(phase: str, kind: str) -> bool:
    """Whether a phase comes in a study of a kind: "race", "ladder", "tries" or "grid"."""
    return all(
        kind in kinds.split(", ") or not any(word in phase for word in words)
        for kinds, words in _RARE.items()
    )
