"""The Optuna study of a search: opened, named for what was asked, and never mixed up."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.storages import BaseStorage

from lrsearch.engine.methods import fill_queue, make_study
from lrsearch.engine.request import Prepared
from lrsearch.errors import InvalidArgumentError
from lrsearch.studies.leases import use_leases
from lrsearch.studies.quiet import quiet_optuna
from lrsearch.studies.storages import local_file, masked, open_storage, require_shared

ASKED: Final = "lrsearch:asked"
"""Study: what it was begun for."""

RUN_UID: Final = "lrsearch:run_uid"
"""Study: its name among all studies, and that of its run in the tracker, by which a later process
goes on with the same run."""

_STUDIES, _CHECKPOINTS = Path("mlruns", "studies"), Path("mlruns", "checkpoints")
# Between processes of one machine a beat costs a line in a file, elsewhere a round trip.
_NEAR_BEAT, _FAR_BEAT = 2.0, 10.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where a study is kept.

    Attributes:
        storage: Optuna's; None for one in memory.
        url: by which other processes open it; None likewise.
        study_name: of the Optuna study; None for one that Optuna makes up.
        uid: the study's name among all studies.
        folder: of checkpoints and keepsakes; None for a study in memory.
        resumed: whether the study was there before.
        beat: seconds from one sign of life of a worker to the next.
    """

    storage: BaseStorage | None
    url: str | None
    study_name: str | None
    uid: str
    folder: Path | None
    resumed: bool
    beat: float

    def discard(self) -> None:
        """Drop what was kept for going on: the study is over."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def keeping(
    storage: str | None,
    study_name: str | None,
    *,
    resume: bool,
    several: bool,
    default_name: str,
    folder: str | PathLike[str] | None,
) -> Keeping:
    """Where a study is to be kept.

    Args:
        storage, study_name, resume: the user's.
        several: whether several workers share it; then it is kept in a journal by default.
        default_name: begin of a name for a study that the user has not named.
        folder: the user's, for checkpoints.

    Raises:
        InvalidArgumentError: if a study is to be resumed that was not kept, or the storage cannot
            be opened, or not be shared, or the name is taken.
    """
    if resume and (study_name is None or (storage is None and not several)):
        raise InvalidArgumentError("resume needs storage and study_name: a study that was kept")
    fresh = uuid.uuid4().hex
    if several:
        study_name = study_name or f"{default_name}-{fresh[:8]}"
        storage = storage or f"journal:{_STUDIES / study_name}.journal"
        require_shared(storage, 2)
    if storage is None:
        return Keeping(None, None, study_name, fresh, None, False, _FAR_BEAT)
    opened = open_storage(storage)
    if not resume and study_name is not None:
        _require_free(study_name, opened, storage)
    uid = _kept_uid(study_name, opened) if resume else None
    return Keeping(
        storage=opened,
        url=storage,
        study_name=study_name,
        uid=uid or fresh,
        folder=kept_folder(storage, uid or fresh, folder),
        resumed=uid is not None,
        beat=_FAR_BEAT if local_file(storage) is None else _NEAR_BEAT,
    )


def kept_folder(storage: str, uid: str, folder: str | PathLike[str] | None) -> Path:
    """The folder of a study's checkpoints: the user's, or beside the storage's file, or here."""
    file = local_file(storage)
    home = _CHECKPOINTS if file is None else file.with_name(f"{file.name}.checkpoints")
    return (home if folder is None else Path(folder)).absolute() / uid


def begin_study(prepared: Prepared, kept: Keeping, *, resume: bool) -> optuna.Study:
    """Open the study of a search, new or resumed, and write down what it is about.

    Raises:
        InvalidArgumentError: if the name is taken, or it is a study of something else.
    """
    plan = prepared.plan
    try:
        with quiet_optuna():
            study = make_study(plan, name=kept.study_name, storage=kept.storage, resume=resume)
    except optuna.exceptions.DuplicatedStudyError as error:  # by another process, meanwhile
        raise _taken(kept.study_name, kept.url or "") from error
    _claim(study, prepared)
    if not kept.resumed:
        study.set_user_attr(RUN_UID, kept.uid)
    if kept.storage is not None:
        use_leases(study)
    fill_queue(study, plan)
    return study


def _require_free(name: str, storage: BaseStorage, url: str) -> None:
    """A taken name is refused before anything is trained: a race comes before the study."""
    try:
        storage.get_study_id_from_name(name)
    except KeyError:
        return
    raise _taken(name, url)


def _taken(name: str | None, url: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"study_name {name!r} is taken in {masked(url)!r}: choose another, or resume it"
    )


def _kept_uid(name: str | None, storage: BaseStorage) -> str | None:
    """``RUN_UID`` of a study that was kept; None if there is no such study, or it has none."""
    try:
        with quiet_optuna():
            study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None
    uid = study.user_attrs.get(RUN_UID)
    return uid if isinstance(uid, str) else None


def _claim(study: optuna.Study, prepared: Prepared) -> None:
    """Write down what a study is about, so that it is never gone on with as something else."""
    asked = what_is_asked(prepared)
    # Studies from before there was a choice were begun with these.
    method = prepared.request.method
    before = {"start": "bound" if method == "exptest" else None, "multipliers": None}
    before |= {"anneal": None, "guard": None, "race": None}
    kept = study.user_attrs.get(ASKED)
    if kept is None:
        study.set_user_attr(ASKED, asked)
        return
    kept = before | kept
    changed = [
        f"{key}={kept.get(key)!r}, not {value!r}"
        for key, value in asked.items()
        if kept.get(key) != value
    ]
    if changed:
        raise InvalidArgumentError(
            f"study_name {study.study_name!r} is a study with {'; '.join(changed)}: resume it as "
            "it was begun, or choose another name"
        )


def what_is_asked(prepared: Prepared) -> dict[str, Any]:
    """What decides the trials of a study, as plain JSON."""
    task, request = prepared.task, prepared.request
    factors = prepared.multipliers
    return {
        "task": task.name,
        "method": request.method,
        "mode": request.mode,
        "alpha": request.alpha,
        "beta": request.beta,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "optimizer": task.optimizer,
        "weight_decay": task.weight_decay,
        "seed": request.seed,
        "start": request.start,
        "multipliers": None if factors is None else list(factors),
        "anneal": request.anneal,
        "guard": request.guard,
        "race": None if request.race is None else dict(request.race),
    }
