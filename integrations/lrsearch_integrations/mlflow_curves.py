"""The loss curve of an MLflow run, read back."""

from __future__ import annotations

from math import isfinite, nan

from lrsearch.errors import MissingDataError
from lrsearch.tracking import RecordedCurve
from lrsearch_integrations.mlflow_api import MlflowClient, MlflowException, Run
from lrsearch_integrations.mlflow_store import (
    StoreError,
    absolute_uri,
    default_tracking_uri,
    explained,
    is_refusal,
    open_client,
    quiet,
    shown,
    sqlite_path,
)

_DIVERGED = "diverged_at_step"


def read_curve(
    run_id: str, *, metric: str = "train/loss", tracking_uri: str | None = None
) -> RecordedCurve:
    """Read a run's losses and its first rate (the ``lrsearch.curves`` entry point).

    The tracker sends no value that is not finite; the step of the first one, which it notes as
    ``diverged_at_step``, ends the curve with NaN. Where a step was written twice, the later counts.

    Args:
        run_id: MLflow's id of the run; of a trial, not of its study.
        metric: key of the losses.
        tracking_uri: the store; None means ``MLFLOW_TRACKING_URI``, else ``./mlruns/mlflow.db``.

    Raises:
        StoreError: if the store cannot be opened, or has no such run.
        MissingDataError: if there is no store yet, or the run has no curve of the metric.
    """
    uri = default_tracking_uri() if tracking_uri is None else absolute_uri(tracking_uri)
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise MissingDataError(f"no run {run_id!r}: no store at {path}, name it by --tracking-uri")
    client = open_client(uri)
    with explained(uri), quiet():
        run = _run(client, run_id, uri)
        losses = {m.step: float(m.value) for m in client.get_metric_history(run_id, metric)}
        rate = _first_rate(client, run)
    if len(losses) < 2:  # a study keeps the final loss alone
        kept = ", ".join(sorted(run.data.metrics)[:5]) or "none"
        raise MissingDataError(
            f"run {run_id!r} in {shown(uri)} has no curve of {metric!r} (metrics: {kept}): "
            "give the id of a trial's run, not of its study"
        )
    if _DIVERGED in run.data.metrics:
        end = int(run.data.metrics[_DIVERGED])
        losses = {step: loss for step, loss in losses.items() if step < end} | {end: nan}
    steps = sorted(losses)
    return RecordedCurve(steps, [losses[step] for step in steps], rate)


def _run(client: MlflowClient, run_id: str, uri: str) -> Run:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if not is_refusal(error):
            raise
        raise StoreError(
            f"no file and no run {run_id!r} in {shown(uri)}: check the name, or --tracking-uri"
        ) from error


def _first_rate(client: MlflowClient, run: Run) -> float | None:
    """The rate of the first step: a decay changes train/lr, not the parameter."""
    try:
        rate = float(run.data.params.get("lr", "nan"))
    except ValueError:
        rate = nan
    if isfinite(rate):
        return rate
    history = client.get_metric_history(run.info.run_id, "train/lr")
    return float(min(history, key=lambda m: m.step).value) if history else None
