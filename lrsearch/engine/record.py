"""What a search tells the tracker about the study as a whole."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from math import isfinite

import numpy as np
import optuna
import torch

from lrsearch.controllers.exptest import ExpTestSettings
from lrsearch.engine.result import SearchResult
from lrsearch.engine.start import Start
from lrsearch.errors import MissingPackageError
from lrsearch.tracking import NullRun, RunTracker, find_tracker
from lrsearch.training.lipschitz import LipschitzEstimate
from lrsearch.training.task import TaskData, TrainingTask
from lrsearch.version import __version__


def open_run(
    tracker: str, experiment: str, name: str, tracking_uri: str | None, method: str
) -> RunTracker:
    """The run of a study: of the named tracker, of MLflow if it is installed ("auto"), or none."""
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
        tags={"lrsearch.kind": "study", "lrsearch.method": method},
    )


def describe(
    run: RunTracker,
    task: TrainingTask,
    data: TaskData,
    settings: ExpTestSettings,
    start: Start,
    method: str,
    seed: int,
    multipliers: Sequence[float] | None,
) -> None:
    """What was asked, on which data, with which versions, and where it starts."""
    run.log_params(
        {
            "task": task.name,
            "data": data.name,
            "train_rows": len(data.train),
            "method": method,
            "mode": settings.mode,
            "alpha": settings.alpha,
            "beta": settings.beta,
            "epochs": task.epochs,
            "batch_size": task.batch_size or "full",
            "optimizer": task.optimizer,
            "loss": task.loss,
            "seed": seed,
            "total_steps": settings.total_steps,
            "start": start.kind,
            "bound_method": start.how,
            "lrsearch": __version__,
            "torch": torch.__version__,
            "optuna": optuna.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "device": str(data.train.inputs.device),
        }
    )
    if multipliers is not None:
        run.log_params({"multipliers": ",".join(f"{each:g}" for each in multipliers)})
    metrics = {"bound/lr_max": start.rate}
    if start.bound is not None:
        metrics["bound/lambda_max"] = start.bound.lambda_max
        metrics["bound/residual"] = start.bound.residual
    if start.estimate is not None:
        metrics |= estimate_metrics(start.estimate)
    run.log_metrics(metrics, step=0)
    if start.note:
        run.set_tags({"lrsearch.start_note": start.note})


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
