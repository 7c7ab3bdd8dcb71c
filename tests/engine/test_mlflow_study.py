"""A search from end to end with the real tracker, on a store of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch import search
from lrsearch.tracking import MissingPackageError, find_tracker
from lrsearch_integrations import mlflow_tracker
from lrsearch_integrations.mlflow_api import MlflowClient

MakeLine = Callable[..., Any]
WINDOW_METRICS = {
    "window/f_statistic",
    "window/pvalue",
    "window/slope",
    "window/t_statistic",
    "window/length",
    "window/correction",
    "window/sse_linear",
    "window/sse_exponential",
    "window/lr",
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker, where the package is not installed too."""
    try:
        find_tracker("mlflow")
    except MissingPackageError:
        monkeypatch.setattr(
            "lrsearch.engine.record.find_tracker", lambda name: mlflow_tracker.open_study_run
        )


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the metric batches that are sent; single metrics are not allowed."""
    sizes: list[int] = []
    send = MlflowClient.log_batch

    def log_batch(self: MlflowClient, run_id: str, metrics: Any = (), *rest: Any, **kw: Any) -> Any:
        sizes.append(len(metrics))
        return send(self, run_id, metrics, *rest, **kw)

    def log_metric(*_: Any, **__: Any) -> None:
        raise AssertionError("one call per metric")

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(MlflowClient, "log_metric", log_metric)
    return sizes


def runs_of(client: MlflowClient, parent: str) -> list[Any]:
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return sorted(found, key=lambda run: int(run.data.params["number"]))


def test_a_study_and_its_trials_are_recorded_as_the_contract_says(
    make_line: MakeLine,
    scale_bound: Callable[[float], None],
    store_uri: str,
    batches: list[int],
    tmp_path: Path,
) -> None:
    scale_bound(30.0)
    result = search(make_line().task, tracking_uri=store_uri)
    sent = list(batches)
    client = MlflowClient(tracking_uri=store_uri)

    parent = client.get_run(result.run_id)
    assert result.tracking_uri == store_uri
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["lrsearch.kind"] == "study"
    assert parent.data.tags["lrsearch.method"] == "exptest"
    assert parent.data.tags["lrsearch.stop_reason"] == result.stop_reason
    assert {"bound/lr_max", "bound/lambda_max", "test/mse", "val/loss"} <= set(parent.data.metrics)
    assert parent.data.metrics["train/lr"] == pytest.approx(result.lr)
    assert parent.data.metrics["test/mse"] == pytest.approx(result.value)
    assert parent.data.metrics["steps"] == result.steps
    assert parent.data.params["total_steps"] == "400"

    trials = runs_of(client, result.run_id)
    assert len(trials) == len(result.trials) > 2
    for run, (_, row) in zip(trials, result.trials.iterrows(), strict=True):
        assert run.data.tags["lrsearch.kind"] == "trial"
        assert run.data.tags["lrsearch.method"] == "exptest"
        assert run.data.tags["lrsearch.trial_state"] == row["state"]
        assert run.info.status == {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[row["state"]]
        assert run.data.tags.get("lrsearch.reason", "") == row["reason"]
        assert float(run.data.params["lr"]) == row["lr"]
        assert run.data.metrics["steps"] == row["steps"]
        assert "window/pvalue" in run.data.metrics

    best = trials[-1]
    assert {*WINDOW_METRICS, "train/loss", "train/lr", "test/mse", "val/mse", "val/loss"} <= set(
        best.data.metrics
    )
    windows = result.windows[result.windows["trial"] == len(trials) - 1]
    history = client.get_metric_history(best.info.run_id, "window/pvalue")
    assert [point.step for point in history] == [stop - 1 for stop in windows["stop"]]
    losses = client.get_metric_history(best.info.run_id, "train/loss")
    assert [point.step for point in losses] == list(range(windows["stop"].max()))
    rates = client.get_metric_history(best.info.run_id, "train/lr")
    assert rates[0].value == pytest.approx(result.lr)

    stored = client.download_artifacts(result.run_id, "windows.parquet", str(tmp_path))
    pd.testing.assert_frame_equal(
        pd.read_parquet(stored), result.windows, check_dtype=False, rtol=0, atol=0
    )
    study = client.download_artifacts(result.run_id, "study.parquet", str(tmp_path))
    assert list(pd.read_parquet(study)["lr"]) == list(result.trials["lr"])
    assert {item.path for item in client.list_artifacts(best.info.run_id)} >= {"windows.parquet"}

    # A few calls a run, however many values.
    assert sum(sent) > 500
    assert len(sent) <= 8 * (len(trials) + 1)


def test_baselines_are_told_apart_and_those_that_diverge_are_killed(
    make_line: MakeLine, store_uri: str
) -> None:
    result = search(make_line(epochs=10).task, method="grid", tracking_uri=store_uri)
    client = MlflowClient(tracking_uri=store_uri)
    trials = runs_of(client, result.run_id)
    assert {run.data.tags["lrsearch.kind"] for run in trials} == {"baseline"}
    statuses = Counter(run.info.status for run in trials)
    states = Counter(result.trials["state"])
    assert statuses == {"FINISHED": states["COMPLETE"], "KILLED": states["PRUNED"]}
    assert states["PRUNED"] >= 1
    for run in trials:
        assert {"train/loss", "train/lr"} <= set(run.data.metrics)
        assert ("diverged_at_step" in run.data.metrics) <= (run.info.status == "KILLED")


def test_lipschitz_rates_and_tries_are_recorded_as_the_contract_says(
    make_line: MakeLine, store_uri: str, batches: list[int]
) -> None:
    result = search(
        make_line().task, method="lipschitz", multipliers=(0.1, 1.0), tracking_uri=store_uri
    )
    sent = len(batches)
    client = MlflowClient(tracking_uri=store_uri)
    parent = client.get_run(result.run_id)
    assert parent.data.tags["lrsearch.method"] == "lipschitz"
    assert parent.data.tags["lrsearch.stop_reason"] == result.stop_reason
    assert parent.data.params["start"] == "lipschitz"
    assert parent.data.params["multipliers"] == "0.1,1"
    unit = result.trials["lr"].max()
    for key in ("bound/lr_max", "lipschitz/lr"):
        assert parent.data.metrics[key] == pytest.approx(unit)
    assert parent.data.metrics["lipschitz/constant"] == pytest.approx(1.0 / unit)
    assert parent.data.metrics["train/lr"] == pytest.approx(result.lr)

    trials = runs_of(client, result.run_id)
    states = ["KILLED", "KILLED", "FINISHED"]
    assert [run.info.status for run in trials] == states
    for run, epochs, (_, row) in zip(trials, (5, 5, 40), result.trials.iterrows(), strict=True):
        assert run.data.tags["lrsearch.kind"] == "trial"
        assert run.data.tags.get("lrsearch.reason", "") == row["reason"]
        steps = [10 * epoch for epoch in range(epochs)]
        history = {
            key: {p.step: p.value for p in client.get_metric_history(run.info.run_id, key)}
            for key in ("lipschitz/constant", "lipschitz/k_z", "lipschitz/lr", "train/lr")
        }
        for key in ("lipschitz/constant", "lipschitz/k_z", "lipschitz/lr"):
            assert sorted(history[key]) == steps
        multiplier = row["lr"] / unit
        for step in steps:
            rate = history["lipschitz/lr"][step]
            assert rate == pytest.approx(1.0 / history["lipschitz/constant"][step])
            assert history["train/lr"][step] == pytest.approx(multiplier * rate)
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 10 * epochs
    assert sent <= 8 * (len(trials) + 1)


def test_where_a_guarded_ladder_started_is_on_record(make_line: MakeLine, store_uri: str) -> None:
    result = search(
        make_line().task, start="lipschitz", multipliers=(30.0,), tracking_uri=store_uri
    )
    client = MlflowClient(tracking_uri=store_uri)
    parent = client.get_run(result.run_id)
    assert parent.data.params["start"] == "lipschitz"
    assert parent.data.params["bound_method"] == "1 / L of the first batch"
    top = result.trials["lr"].iloc[0]
    assert 30.0 * parent.data.metrics["bound/lr_max"] == pytest.approx(top)
    assert {"lipschitz/constant", "lipschitz/k_z"} <= set(parent.data.metrics)
    assert "bound/lambda_max" not in parent.data.metrics
    trials = runs_of(client, result.run_id)
    assert len(trials) == len(result.trials) > 1
    assert all("window/pvalue" in run.data.metrics for run in trials)


def test_a_failed_training_leaves_trial_and_study_failed(
    make_line: MakeLine, store_uri: str
) -> None:
    with pytest.raises(RuntimeError, match="the user's own trouble"):
        search(make_line(fail_at=50).task, tracking_uri=store_uri, experiment="broken")
    client = MlflowClient(tracking_uri=store_uri)
    experiment = client.get_experiment_by_name("broken")
    found = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in found] == ["FAILED", "FAILED"]
    assert sorted(run.data.tags["lrsearch.kind"] for run in found) == ["study", "trial"]
    assert {run.data.tags["lrsearch.trial_state"] for run in found} == {"FAIL"}
    trial = next(run for run in found if run.data.tags["lrsearch.kind"] == "trial")
    assert trial.data.metrics["steps"] == 49


def test_studies_of_one_store_share_an_experiment_and_nothing_else(
    make_line: MakeLine, store_uri: str
) -> None:
    first, second = (
        search(make_line(epochs=2).task, method="grid", trials=2, seed=seed, tracking_uri=store_uri)
        for seed in (0, 1)
    )
    client = MlflowClient(tracking_uri=store_uri)
    assert first.run_id != second.run_id
    one, two = client.get_run(first.run_id), client.get_run(second.run_id)
    assert one.info.experiment_id == two.info.experiment_id
    assert client.get_experiment(one.info.experiment_id).name == "lrsearch"
    for result in (first, second):
        assert len(runs_of(client, result.run_id)) == 2
