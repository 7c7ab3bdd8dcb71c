"""The Optuna study of a search: opened, named for what was asked, and never mixed up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import optuna

from lrsearch.controllers.exptest import ExpTestSettings
from lrsearch.engine.methods import Plan, make_study
from lrsearch.errors import InvalidArgumentError
from lrsearch.training.task import TrainingTask

ASKED = "lrsearch:asked"
"""Study: what it was begun for."""


RUN_UID = "lrsearch:run_uid"
"""Study: name of its run in the tracker, by which a later process goes on with the same run."""


def kept_uid(name: str | None, storage: str | None) -> str | None:
    """``RUN_UID`` of a study that was kept; None if there is no such study, or it has none."""
    if name is None or storage is None:
        return None
    try:
        with quiet_optuna():
            study = optuna.load_study(study_name=name, storage=storage)
    except Exception:  # it is opened in earnest later, where the reason is told
        return None
    uid = study.user_attrs.get(RUN_UID)
    return uid if isinstance(uid, str) else None


def open_study(plan: Plan, *, name: str | None, storage: str | None, resume: bool) -> optuna.Study:
    """The study of a plan, new or resumed.

    Raises:
        InvalidArgumentError: if the name is taken, or the storage cannot be opened.
    """
    try:
        with quiet_optuna():
            return make_study(plan, name=name, storage=storage, resume=resume)
    except optuna.exceptions.DuplicatedStudyError as error:
        raise InvalidArgumentError(
            f"study_name {name!r} is taken in {masked(storage)!r}: choose another, or resume it"
        ) from error
    except Exception as error:  # whatever the driver of a database raises
        if storage is None:
            raise
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InvalidArgumentError(
            f"storage {masked(storage)!r} cannot be opened ({why}): give a URL that Optuna knows, "
            "such as sqlite:///study.db"
        ) from error


def claim(
    study: optuna.Study,
    task: TrainingTask,
    settings: ExpTestSettings,
    method: str,
    seed: int,
    *,
    start: str | None,
    multipliers: Sequence[float] | None,
) -> None:
    """Write down what a study is about, so that it is never gone on with as something else."""
    # Studies from before there was a choice were begun with these.
    before = {"start": "bound" if method == "exptest" else None, "multipliers": None}
    asked = {
        "task": task.name,
        "method": method,
        "mode": settings.mode,
        "alpha": settings.alpha,
        "beta": settings.beta,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "optimizer": task.optimizer,
        "seed": seed,
        "start": start,
        "multipliers": None if multipliers is None else list(multipliers),
    }
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


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's own log lines would drown ours."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def masked(url: str | None) -> str | None:
    """A storage's URL without its password, for messages."""
    return None if url is None else re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)
