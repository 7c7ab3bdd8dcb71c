"""What several workers record, one of them killed: one study in MLflow, each curve once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from spools import wait_until_sent

from lrsearch import search
from lrsearch.engine.result import SearchResult
from lrsearch_integrations.mlflow_api import MlflowClient

pytestmark = pytest.mark.slow
STATES = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


def histories(uri: str, result: SearchResult) -> dict[int, dict[str, list[tuple[int, float]]]]:
    """All metrics of all trials, by number; fails if a run or a point is there twice."""
    client = MlflowClient(tracking_uri=uri)
    study = client.get_run(result.run_id)
    assert study.info.status == "FINISHED"
    children = client.search_runs(
        [study.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run_id}'"
    )
    runs = {int(run.data.params["number"]): run for run in children}
    assert len(runs) == len(children)
    assert {number: run.info.status for number, run in runs.items()} == {
        int(row["number"]): STATES[row["state"]] for _, row in result.trials.iterrows()
    }
    found: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for number, run in runs.items():
        assert run.data.params["device"] == "cpu"
        for key in run.data.metrics.keys() - {"seconds"}:
            history = client.get_metric_history(run.info.run_id, key)
            points = sorted((point.step, point.value) for point in history)
            assert len({step for step, _ in points}) == len(points), (number, key, points)
            found.setdefault(number, {})[key] = points
    return found


@pytest.mark.parametrize("killed", [False, True])
def test_workers_record_one_study_with_each_curve_once(
    tmp_path: Path,
    store_uri: str,
    scale_bound: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    scale_bound(30.0)
    monkeypatch.setenv("LRSEARCH_TEST_MARK", str(tmp_path / "mark"))
    if killed:
        (tmp_path / "mark").touch()
    options: dict[str, Any] = {
        "start": "bound",
        "tracking_uri": store_uri,
        "checkpoint_seconds": 0.02,
    }
    one = search("worker_tasks:line", **options)
    two = search(
        "worker_tasks:deadly_line",
        workers=2,
        storage=f"journal:{tmp_path / 'study.journal'}",
        study_name="two",
        **options,
    )
    assert not (tmp_path / "mark").exists()
    wait_until_sent(store_uri)
    assert (two.lr, two.value) == (one.lr, one.value)
    alone, together = histories(store_uri, one), histories(store_uri, two)
    assert {number: together[number] for number in alone} == alone
