"""``search``: one study of one method on one task, from the data to the answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import optuna
import pandas as pd
from optuna.trial import TrialState

from lrsearch.controllers.exptest import ExpTestSettings
from lrsearch.engine.drawing import log_study
from lrsearch.engine.lipschitz import default_multipliers
from lrsearch.engine.methods import METHODS, Plan, make_plan
from lrsearch.engine.objective import Objective
from lrsearch.engine.progress import SearchWatcher, SilentWatcher
from lrsearch.engine.provenance import data_record
from lrsearch.engine.record import describe, log_failure, open_run, report
from lrsearch.engine.result import (
    SearchResult,
    choose,
    total_steps,
    trials_table,
)
from lrsearch.engine.start import checked_start, find_start
from lrsearch.engine.storage import RUN_UID, claim, kept_uid, open_study, quiet_optuna
from lrsearch.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    require_choice,
    require_positive,
    require_whole,
)
from lrsearch.stats.convergence import Mode
from lrsearch.studies.attributes import STOP_REASON
from lrsearch.tasks import resolve_task
from lrsearch.tracking import NullRun, RunTracker
from lrsearch.training.loop import steps_per_epoch
from lrsearch.training.task import TaskData, TrainingTask

EXPERIMENT = "lrsearch"
# The largest that numpy's generators take.
LARGEST_SEED = 2**32 - 1


def search(
    task: TrainingTask | str,
    *,
    method: str = "exptest",
    mode: Mode = "robust",
    alpha: float = 0.05,
    beta: float = 0.33,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    seed: int = 0,
    trials: int | None = None,
    workers: int | str = 1,
    storage: str | None = None,
    study_name: str | None = None,
    resume: bool = False,
    tracking_uri: str | None = None,
    tracker: str = "auto",
    experiment: str = EXPERIMENT,
    data_dir: str | PathLike[str] | None = None,
    watcher: SearchWatcher | None = None,
    start: str | None = None,
    multipliers: Sequence[float] | None = None,
    log_model: bool = False,
) -> SearchResult:
    """Search the learning rate of a task with one method.

    Args:
        task: a ``TrainingTask``, a built-in name (``lrsearch tasks``), or
            "package.module:attribute".
        method: "exptest", "lipschitz" (1 / L, renewed each epoch), "grid" (nine log points around
            the bound), "random" or "tpe" (with median pruning). Each is charged for every gradient
            step, and chooses by the validation loss.
        mode, alpha, beta: of ExpTest.
        epochs, batch_size, optimizer: override the task's own.
        seed: of the split, the weights, the batches and the sampler.
        trials: most trials; default: the method's own.
        workers: 1; further processes join by the same search with ``storage`` and ``resume``.
        storage: an Optuna storage URL; in memory by default.
        study_name: of the Optuna study.
        resume: go on with the study of that name.
        tracking_uri: the tracker's store; default: its own.
        tracker: "auto" (MLflow if installed), "none", or the name of a registered tracker.
        experiment: the tracker's experiment.
        data_dir: folder with data files of built-in tasks.
        watcher: is told how it goes.
        start: where ExpTest's ladder starts: "bound" (of the data; default) or "lipschitz": 1 / L
            of the first batch. With method "lipschitz": None for the papers' method, without a
            test; "lipschitz" hands 1 / L to ExpTest, which rejects it where it is too high.
        multipliers: factors of 1 / L (mode "paper" with momentum: AdaMo's x). Several are tried for
            five epochs each, and the best by validation loss is trained in full. Default: 1; for
            momentum 1, 3 and 10, in mode "paper" 0.1, 0.5 and 1. With ``start`` there may be one.

        log_model: store the chosen trial's model in the tracker, with its signature.

    Returns:
        What was found; ``lr`` is NaN if no trial was completed. "lipschitz" renews the rate, so
        ``lr`` is that of the first epoch, ``trials["lr_final"]`` the last.

    Raises:
        ValueError, TypeError: on bad input, in one line.
        MissingDataError: if the task's data are not to be had.
    """
    require_choice("method", method, METHODS)
    if workers != 1:
        raise InvalidArgumentError(
            f"workers must be 1 in this version, got {workers!r}: start the same search with "
            "storage, study_name and resume in further processes"
        )
    if not 0 <= require_whole("seed", seed) <= LARGEST_SEED:
        raise InvalidArgumentError(f"seed must lie in 0 ... {LARGEST_SEED}, got {seed!r}")
    for name, count in (("trials", trials), ("epochs", epochs), ("batch_size", batch_size)):
        if count is not None and require_whole(name, count) < 1:
            raise InvalidArgumentError(f"{name} must be at least 1, got {count!r}")
    if resume and (storage is None or study_name is None):
        raise InvalidArgumentError("resume needs storage and study_name: a study that was kept")
    begin = checked_start(method, start)
    factors = _checked_multipliers(method, begin, multipliers)
    # Read before any data are loaded: bad options cost nothing.
    settings = ExpTestSettings(alpha=alpha, beta=beta, mode=mode)
    chosen = adapted(as_task(task, data_dir), epochs, batch_size, optimizer)
    began = time.perf_counter()
    data = chosen.data(seed)
    if not isinstance(data, TaskData):
        raise InvalidTypeError(
            f"data of task {chosen.name!r} must return TaskData, got {type(data).__name__}"
        )
    full_batch = chosen.batch_size is None or chosen.batch_size >= len(data.train)
    steps = steps_per_epoch(chosen, data) * chosen.epochs
    settings = replace(settings, full_batch=full_batch, total_steps=steps)
    if method == "lipschitz" and begin is None:
        factors = factors or default_multipliers(chosen, mode)
    top = find_start(chosen, data, mode, seed, method=method, start=begin)
    plan = make_plan(
        method,
        top.rate,
        settings,
        seed,
        trials,
        guarded=begin == "lipschitz",
        multipliers=factors or (1.0,),
        epochs=chosen.epochs,
    )
    told = watcher or SilentWatcher()
    if top.note:
        told.noted(top.note)
    prepared = time.perf_counter() - began
    # The tracker first: if its store cannot be opened, no study's name is taken.
    title = f"{chosen.name} {method} seed {seed}"
    uid = kept_uid(study_name, storage) if resume else None
    resumed = uid is not None
    uid = uid or uuid.uuid4().hex
    run = open_run(tracker, experiment, title, tracking_uri, method, uid=uid)
    recorded = type(run) is not NullRun  # one built on it may record
    seen = data_record(data) if recorded else None
    objective = Objective(
        task=chosen,
        data=data,
        plan=plan,
        settings=settings,
        seed=seed,
        run=run,
        kind="trial" if method in ("exptest", "lipschitz") else "baseline",
        method=method,
        watcher=told,
        start=top,
        uid=uid,
        seen=seen,
        keep_model=log_model,
    )
    # The bound is part of the price; the tracker's one-off start is not, and no figure is.
    began = time.perf_counter() - prepared
    finished = False
    try:
        study = open_study(plan, name=study_name, storage=storage, resume=resume)
        claim(study, chosen, settings, method, seed, start=begin, multipliers=factors)
        if recorded and not resumed:
            study.set_user_attr(RUN_UID, uid)
        describe(run, chosen, data, seen, settings, top, method, seed, factors, resumed=resumed)
        left = _trials_left(plan, study)
        if left > 0 and STOP_REASON not in study.user_attrs:
            with quiet_optuna():
                study.optimize(objective, n_trials=left)
        seconds = time.perf_counter() - began - objective.drawing_seconds
        result = _result(objective, study, run, seconds)
        report(run, result, study)
        if recorded:
            log_study(run, result, top, objective.chosen_figure)
        if log_model:
            log_chosen_model(run, objective, result)
        finished = True
    except Exception as error:
        log_failure(run, error)
        raise
    finally:
        run.finish("complete" if finished else "failed")
    return result


def as_task(task: TrainingTask | str, data_dir: str | PathLike[str] | None) -> TrainingTask:
    """The task itself, or the one that a name means."""
    if isinstance(task, TrainingTask):
        return task
    if isinstance(task, str):
        return resolve_task(task, data_dir=data_dir)
    raise InvalidTypeError(f"task must be a TrainingTask or a name, got {type(task).__name__}")


def adapted(
    task: TrainingTask, epochs: int | None, batch_size: int | None, optimizer: str | None
) -> TrainingTask:
    """The task with a user's own epochs, batch size or optimizer."""
    changes: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "optimizer": optimizer}
    return replace(task, **{key: value for key, value in changes.items() if value is not None})


def _checked_multipliers(
    method: str, start: str | None, multipliers: Sequence[float] | None
) -> tuple[float, ...] | None:
    if multipliers is None:
        return None
    if method != "lipschitz" and start != "lipschitz":
        raise InvalidArgumentError(
            f"multipliers go with method 'lipschitz' or start='lipschitz', got method {method!r}: "
            "leave them out"
        )
    if isinstance(multipliers, str) or not isinstance(multipliers, Sequence) or not multipliers:
        raise InvalidTypeError(
            f"multipliers must be a sequence of positive numbers, got {multipliers!r}"
        )
    if start == "lipschitz" and len(multipliers) > 1:
        raise InvalidArgumentError(
            f"multipliers must hold one number with start='lipschitz', whose ladder goes on by "
            f"itself; got {multipliers!r}"
        )
    return tuple(require_positive("multipliers", each) for each in multipliers)


def _trials_left(plan: Plan, study: optuna.Study) -> int:
    trials = study.get_trials(deepcopy=False)
    # A ladder has spare trials, a grid's points are spent; after tries one more is needed.
    lost = sum(each.state == TrialState.FAIL for each in trials) if plan.tries else 0
    return plan.trials - len(trials) + lost


def log_chosen_model(run: RunTracker, objective: Objective, result: SearchResult) -> None:
    """Store the chosen trial's model; say why not, where another process has trained it."""
    if objective.chosen_model is None or objective.model_loss > result.val_loss:
        run.set_tags({"lrsearch.model": "none: no trial of this process was chosen"})
        return
    example = objective.data.train.inputs[:2]
    run.log_model("model", objective.chosen_model.eval(), example)
    run.set_tags({"lrsearch.model": "model"})


def _result(
    objective: Objective, study: optuna.Study, run: RunTracker, seconds: float
) -> SearchResult:
    task, settings = objective.task, objective.settings
    choice = choose(task, study)
    reason = study.user_attrs.get(STOP_REASON)
    return SearchResult(
        task=task.name,
        method=objective.method,
        mode=settings.mode,
        seed=objective.seed,
        metric=task.metric,
        direction=task.direction,
        lr=choice.lr,
        value=choice.value,
        oracle_value=choice.oracle_value,
        val_loss=choice.val_loss,
        train_loss=choice.train_loss,
        steps=total_steps(study),
        seconds=seconds,
        stop_reason=str(reason) if reason else "all trials done",
        study=study,
        trials=trials_table(study),
        windows=pd.DataFrame(objective.windows),
        run_id=run.run_id,
        tracking_uri=run.tracking_uri,
        start=objective.start.kind,
        start_note=objective.start.note,
    )
