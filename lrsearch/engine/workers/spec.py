"""What a worker of a study has to know; it travels to processes and machines."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

from lrsearch.engine.request import SearchRequest
from lrsearch.engine.start import Start
from lrsearch.engine.workers.placement import Placement
from lrsearch.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Durability:
    """What makes a study outlive its workers.

    Attributes:
        folder: of checkpoints and keepsakes.
        checkpoint_seconds: at most so much training is lost with a worker.
        beat_seconds: how often a worker says that it lives.
        lease_seconds: a worker on another machine that is silent for so long is dead.
    """

    folder: Path
    checkpoint_seconds: float = 30.0
    beat_seconds: float = 10.0
    lease_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """A study, as one of its workers needs it.

    Attributes:
        request: what was asked.
        start: where the study begins; found once, for all.
        storage: URL of the Optuna storage.
        study_name: of the Optuna study.
        uid: the study's name among all studies; its run's in the tracker.
        tracker, tracking_uri, experiment: where to record.
        data_file: the data, for workers of one machine; None to load them.
        placement: where it runs.
        keep_model: whether the best trial's model is kept.
        max_failures: so many failures in a row end the study.
        durability: of the study.
        draws: added to the worker's number for the seed of a random sampler.
    """

    request: SearchRequest
    start: Start
    storage: str
    study_name: str
    uid: str
    tracker: str
    tracking_uri: str | None
    experiment: str
    data_file: Path | None
    placement: Placement
    keep_model: bool
    max_failures: int
    durability: Durability
    draws: int = 0


def require_portable(request: SearchRequest) -> None:
    """Refuse a task that other processes could not be given.

    Raises:
        InvalidArgumentError: if it cannot be pickled, as a task with a lambda.
    """
    try:
        pickle.dumps(request.task)
    except Exception as error:  # pickle raises what it likes
        name = request.task if isinstance(request.task, str) else request.task.name
        why = " ".join(str(error).split())
        raise InvalidArgumentError(
            f"task {name!r} cannot be sent to other processes ({why}): define its data and model "
            "at the top of a module, or use one worker"
        ) from error
