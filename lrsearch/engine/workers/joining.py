"""Joining a study that another process has begun, here or on another machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from os import PathLike
from typing import Any, Final

import optuna

from lrsearch.engine.progress import SearchWatcher, SilentWatcher
from lrsearch.engine.request import SearchRequest
from lrsearch.engine.start import Start
from lrsearch.engine.storage import Keeping, kept_folder
from lrsearch.engine.workers.crew import crew_of
from lrsearch.engine.workers.placement import ANYWHERE
from lrsearch.engine.workers.spec import Durability, WorkerSpec
from lrsearch.errors import InvalidArgumentError
from lrsearch.studies.quiet import quiet_optuna
from lrsearch.studies.storages import masked, open_storage, require_shared
from lrsearch.training.task import TrainingTask

RECIPE: Final = "lrsearch:recipe"
"""Study: what a worker that joins it has to know."""

# What every machine has its own of.
_OWN: Final = ("task", "data_dir")


def write_recipe(study: optuna.Study, spec: WorkerSpec) -> None:
    """Leave in a study what ``join`` needs."""
    request = asdict(replace(spec.request, task=""))
    start = {"kind": spec.start.kind, "rate": spec.start.rate, "how": spec.start.how}
    recipe: dict[str, Any] = {
        "task": spec.request.task if isinstance(spec.request.task, str) else None,
        "request": {key: value for key, value in request.items() if key not in _OWN},
        "start": start,
        "uid": spec.uid,
        "tracker": spec.tracker,
        "tracking_uri": spec.tracking_uri,
        "experiment": spec.experiment,
        "keep_model": spec.keep_model,
        "max_failures": spec.max_failures,
        "checkpoint_seconds": spec.durability.checkpoint_seconds,
        "beat_seconds": spec.durability.beat_seconds,
    }
    study.set_user_attr(RECIPE, recipe)


def kept_start(kept: Keeping) -> Start | None:
    """Where a kept study has begun, without what that rests on; None if it does not say."""
    assert kept.storage is not None
    with quiet_optuna():
        study = optuna.load_study(study_name=kept.study_name, storage=kept.storage)
    recipe = study.user_attrs.get(RECIPE)
    return Start(**recipe["start"]) if isinstance(recipe, dict) else None


def join(
    study_name: str,
    storage: str,
    *,
    workers: int | str | Sequence[str] = 1,
    per_device: int = 1,
    task: TrainingTask | str | None = None,
    data_dir: str | PathLike[str] | None = None,
    tracking_uri: str | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    watcher: SearchWatcher | None = None,
) -> int:
    """Work at a running study until it is over; returns how many trials were ended here.

    Everything that decides a trial comes from the study; the data are loaded here.

    Args:
        study_name, storage: of the study.
        workers, per_device: as for ``search``, of this machine.
        task: where the study's own was not given by a name.
        data_dir: folder with data files of built-in tasks, here.
        tracking_uri: of the study's tracker, if it has another address here.
        checkpoint_dir: that of the search, if this machine shares it.
        watcher: is told how it goes.

    Raises:
        InvalidArgumentError: if there is no such study, or it cannot be joined.
    """
    require_shared(storage, 2)
    crew = crew_of(workers, per_device)
    told = watcher or SilentWatcher()
    recipe = _recipe(study_name, storage)
    named = task if task is not None else recipe["task"]
    if named is None:
        raise InvalidArgumentError(
            f"task must be given: that of study {study_name!r} has no name that another process "
            "could find it by; put it in a module, and give package.module:attribute"
        )
    spec = WorkerSpec(
        request=SearchRequest(task=named, data_dir=data_dir, **recipe["request"]),
        start=Start(**recipe["start"]),
        storage=storage,
        study_name=study_name,
        uid=recipe["uid"],
        tracker=recipe["tracker"],
        tracking_uri=tracking_uri or recipe["tracking_uri"],
        experiment=recipe["experiment"],
        data_file=None,
        placement=ANYWHERE,
        # Random samplers of workers that know nothing of each other must not draw the same.
        draws=random.SystemRandom().randrange(1, 2**31),
        keep_model=recipe["keep_model"],
        max_failures=recipe["max_failures"],
        durability=Durability(
            kept_folder(storage, recipe["uid"], checkpoint_dir),
            checkpoint_seconds=recipe["checkpoint_seconds"],
            beat_seconds=recipe["beat_seconds"],
        ),
    )
    return crew.run(spec, told)


def _recipe(study_name: str, storage: str) -> dict[str, Any]:
    opened = open_storage(storage)
    try:
        with quiet_optuna():
            study = optuna.load_study(study_name=study_name, storage=opened)
    except KeyError as error:
        raise InvalidArgumentError(
            f"study_name {study_name!r} is not in {masked(storage)!r}: check both, or begin it "
            "with lrsearch search"
        ) from error
    recipe = study.user_attrs.get(RECIPE)
    if not isinstance(recipe, dict):
        raise InvalidArgumentError(
            f"study_name {study_name!r} is no search of lrsearch's that workers may join: "
            "begin it with lrsearch search"
        )
    return recipe
