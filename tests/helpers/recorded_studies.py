"""What an MLflow store knows of a study that was recorded, for tests to compare."""

from __future__ import annotations

from typing import Any

from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_store import experiment_id, open_client


def runs_of(uri: str, experiment: str = "lrsearch") -> tuple[Any, dict[str, Any]]:
    """The only study's run, and its trials' runs by name; fails if there is any other run."""
    client = open_client(uri)
    found = list(client.search_runs([experiment_id(client, experiment, uri)]))
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    trials = [run for run in found if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} <= {parent.info.run_id}
    names = [run.info.run_name for run in trials]
    assert len(names) == len(set(names)), names
    return parent, {run.info.run_name: run for run in trials}


def history(uri: str, run: Any, key: str) -> list[tuple[int, float]]:
    points = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in points)


def everything(uri: str) -> Any:
    """All that the store knows of all trials, for comparison."""
    _, trials = runs_of(uri)
    return {
        name: (
            run.info.run_id,
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            run.data.params,
            run.data.metrics,
            run.data.tags,
            history(uri, run, "intermediate_value"),
        )
        for name, run in trials.items()
    }
