"""What a search tells the tracker about the study as a whole."""

from __future__ import annotations

import traceback
from collections import Counter
from math import isfinite

import optuna

from lrsearch.engine.provenance import DataRecord, machine, versions
from lrsearch.engine.request import Prepared
from lrsearch.engine.result import SearchResult
from lrsearch.errors import MissingPackageError
from lrsearch.tracking import NullRun, RunTracker, find_tracker
from lrsearch.training.lipschitz import LipschitzEstimate

_LINE = 300


def open_run(
    tracker: str,
    experiment: str,
    name: str,
    tracking_uri: str | None,
    method: str,
    *,
    kind: str = "study",
    uid: str | None = None,
) -> RunTracker:
    """The run of a study: of the named tracker, of MLflow if it is installed ("auto"), or none.

    A study that goes on in another process goes on with the run of its ``uid``.
    """
    if tracker == "none":
        return NullRun()
    try:
        open_study_run = find_tracker("mlflow" if tracker == "auto" else tracker)
    except MissingPackageError:
        if tracker == "auto" and tracking_uri is None:
            return NullRun()
        raise
    return open_study_run(
        experiment=experiment,
        name=name,
        tracking_uri=tracking_uri,
        tags={"lrsearch.kind": kind, "lrsearch.method": method},
        uid=uid,
    )


def describe(
    run: RunTracker, prepared: Prepared, seen: DataRecord | None, *, resumed: bool
) -> None:
    """What was asked, on which data, with which versions, and where it starts."""
    if seen is None:  # nothing is recorded
        return
    task, data, start = prepared.task, prepared.data, prepared.start
    request, settings = prepared.request, prepared.settings
    used = {**versions(), **machine(data)}
    if resumed:  # a parameter keeps its first value, and these may have changed since
        run.set_tags({"lrsearch.resumed_with": used})
    else:
        run.log_params(used)
    run.log_input(seen.name, seen.digest, profile=seen.profile)
    run.log_params(
        {
            "task": task.name,
            "data": data.name,
            "train_rows": len(data.train),
            "method": request.method,
            "mode": settings.mode,
            "alpha": settings.alpha,
            "beta": settings.beta,
            "epochs": task.epochs,
            "batch_size": task.batch_size or "full",
            "optimizer": task.optimizer,
            "loss": task.loss,
            "seed": request.seed,
            "total_steps": settings.total_steps,
            "start": start.kind,
            "bound_method": start.how,
        }
    )
    if task.weight_decay is not None:
        run.log_params({"weight_decay": task.weight_decay})
    if prepared.multipliers is not None:
        run.log_params({"multipliers": ",".join(f"{each:g}" for each in prepared.multipliers)})
    metrics = {"bound/lr_max": start.rate}
    if start.bound is not None:
        metrics["bound/lambda_max"] = start.bound.lambda_max
        metrics["bound/residual"] = start.bound.residual
    if start.estimate is not None:
        metrics |= estimate_metrics(start.estimate)
    run.log_metrics(metrics, step=0)
    if start.note:
        run.set_tags({"lrsearch.start_note": start.note})


def log_failure(run: RunTracker, error: BaseException) -> str:
    """Keep the traceback of what ended a run; returns it in one line."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    line = words if len(words) <= _LINE else f"{words[: _LINE - 1]}…"
    run.log_text("error.txt", "".join(traceback.format_exception(error)))
    run.set_tags({"lrsearch.reason": line})
    return line


def estimate_metrics(estimate: LipschitzEstimate) -> dict[str, float]:
    """A Lipschitz estimate as metrics, named as LipschitzLR names them."""
    return {
        "lipschitz/constant": estimate.lipschitz,
        "lipschitz/k_z": estimate.k_z,
        "lipschitz/lr": estimate.lr,
    }


def report(run: RunTracker, result: SearchResult, study: optuna.Study) -> None:
    """The answer, on the study's run."""
    answer = {
        # The keys of a trial's last values, so that studies and trials share columns.
        "train/lr": result.lr,
        "train/loss": result.train_loss,
        f"test/{result.metric}": result.value,
        f"test/{result.metric}_oracle": result.oracle_value,
        "val/loss": result.val_loss,
        "steps": result.steps,
        "seconds": result.seconds,
        "trials": len(result.trials),
    }
    # No answer is no divergence: a tracker would note NaN as one.
    run.log_metrics({key: value for key, value in answer.items() if isfinite(value)}, step=0)
    states = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
    run.set_tags(
        {
            "lrsearch.stop_reason": result.stop_reason,
            "lrsearch.study": study.study_name,
            **{f"lrsearch.trials_{state}": count for state, count in states.items()},
        }
    )
    if len(result.trials):
        run.log_table("study", result.trials)
    if len(result.windows):
        run.log_table("windows", result.windows)
