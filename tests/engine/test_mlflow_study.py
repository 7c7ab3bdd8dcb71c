"""A search from end to end with the real tracker, on a store of its own."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch import compare, search
from lrsearch.engine.provenance import data_digest
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
    result = search(make_line().task, start="bound", tracking_uri=store_uri)
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
    # A request carries ten steps at least, of 5 + 5 + 40 epochs with 10 each.
    assert sent <= (5 + 5 + 40) * 10 // 10


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
        search(
            make_line(fail_at=50).task,
            start="bound",
            tracking_uri=store_uri,
            experiment="broken",
            max_failures=1,
        )
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


def artifacts_of(client: MlflowClient, run_id: str) -> dict[str, int]:
    """Sizes of a run's artifacts by path, folders opened."""
    found: dict[str, int] = {}
    folders = [""]
    while folders:
        for item in client.list_artifacts(run_id, folders.pop() or None):
            if item.is_dir:
                folders.append(item.path)
            else:
                found[item.path] = item.file_size
    return found


def test_figures_lie_on_each_controlled_trial_and_a_page_on_the_study(
    make_line: MakeLine, scale_bound: Callable[[float], None], store_uri: str, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    scale_bound(30.0)
    result = search(make_line().task, start="bound", tracking_uri=store_uri)
    client = MlflowClient(tracking_uri=store_uri)
    study = artifacts_of(client, result.run_id)
    assert study["figures/study.png"] > 5_000
    assert {"study.csv", "study.parquet", "windows.csv", "windows.parquet"} <= set(study)
    page = Path(client.download_artifacts(result.run_id, "figures/study.html", str(tmp_path)))
    text = page.read_text(encoding="utf-8")
    assert "<script src" not in text
    for words in ("bound", "the chosen trial", "accept: decay", "chosen"):
        assert words in text
    for run in runs_of(client, result.run_id):
        assert artifacts_of(client, run.info.run_id)["figures/loss.png"] > 5_000

    grid = search(make_line(epochs=2).task, method="grid", trials=2, tracking_uri=store_uri)
    assert "figures/study.png" in artifacts_of(client, grid.run_id)
    assert "figures/study.html" not in artifacts_of(client, grid.run_id)
    for run in runs_of(client, grid.run_id):
        assert not any(name.startswith("figures") for name in artifacts_of(client, run.info.run_id))


def test_without_a_library_that_draws_a_study_is_recorded_all_the_same(
    make_line: MakeLine, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib.figure", "plotly.graph_objects"):
        monkeypatch.setitem(sys.modules, name, None)
    result = search(make_line().task, tracking_uri=store_uri)
    client = MlflowClient(tracking_uri=store_uri)
    assert client.get_run(result.run_id).info.status == "FINISHED"
    assert set(artifacts_of(client, result.run_id)) == {
        *("study.csv", "study.parquet", "windows.csv", "windows.parquet")
    }


@pytest.mark.parametrize("start", ["race", "bound"])
def test_data_machine_and_windows_are_on_record(
    make_line: MakeLine, store_uri: str, start: str
) -> None:
    result = search(make_line().task, start=start, tracking_uri=store_uri)
    client = MlflowClient(tracking_uri=store_uri)
    parent = client.get_run(result.run_id)
    wanted = {
        *("lrsearch", "torch", "optuna", "numpy", "python"),
        *("device", "cpu_count", "platform", "seed", "bound_method"),
    }
    assert wanted <= set(parent.data.params)
    assert {"bound/lr_max", "steps", "seconds"} <= set(parent.data.metrics)
    if start == "bound":
        assert {"bound/lambda_max", "bound/residual"} <= set(parent.data.metrics)
    assert parent.data.metrics["trials"] == len(result.trials)
    assert parent.data.tags["lrsearch.trials_complete"] == "1"
    digest = data_digest(make_line().task.data(0))
    runs = [parent, *runs_of(client, result.run_id)]
    for run in runs:
        (seen,) = run.inputs.dataset_inputs
        assert (seen.dataset.name, seen.dataset.digest) == ("line", digest)
        assert json.loads(seen.dataset.profile) == {
            "rows": 160,
            "features": [4],
            "outputs": 1,
            "validation_rows": 40,
            "test_rows": 40,
        }
    last = result.windows.iloc[-1]
    assert runs[-1].data.tags["lrsearch.decision"] == last["decision"]
    assert {"trial", "reason", "decision", "n_effective", "log10_pvalue"} <= set(result.windows)
    assert last["log10_pvalue"] == pytest.approx(math.log10(last["pvalue"]))


def test_what_the_users_model_raised_is_kept_with_its_traceback(
    make_line: MakeLine, store_uri: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="the user's own trouble"):
        search(
            make_line(fail_at=50).task,
            start="bound",
            tracking_uri=store_uri,
            experiment="broken",
            max_failures=1,
        )
    client = MlflowClient(tracking_uri=store_uri)
    experiment = client.get_experiment_by_name("broken")
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 2
    for run in found:
        assert run.data.tags["lrsearch.reason"] == "RuntimeError: the user's own trouble"
        file = client.download_artifacts(run.info.run_id, "error.txt", str(tmp_path))
        trace = Path(file).read_text(encoding="utf-8")
        assert trace.startswith("Traceback")
        assert "conftest.py" in trace


def test_a_resumed_study_goes_on_with_its_run(
    make_line: MakeLine, store_uri: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "method": "grid",
        "trials": 5,
        "storage": f"sqlite:///{tmp_path}/study.db",
        "study_name": "kept",
        "tracking_uri": store_uri,
    }
    with pytest.raises(RuntimeError):  # in the third trial, of 20 steps each
        search(make_line(epochs=2, fail_at=50).task, max_failures=1, **options)
    client = MlflowClient(tracking_uri=store_uri)
    experiment = client.get_experiment_by_name("lrsearch").experiment_id
    assert len(client.search_runs([experiment], "tags.`lrsearch.kind` = 'study'")) == 1

    result = search(make_line(epochs=2).task, resume=True, **options)
    (parent,) = client.search_runs([experiment], "tags.`lrsearch.kind` = 'study'")
    assert parent.info.run_id == result.run_id
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["lrsearch.trial_state"] == "COMPLETE"
    assert parent.data.metrics["steps"] == result.steps
    assert "lrsearch.resumed_with" in parent.data.tags
    trials = runs_of(client, result.run_id)
    assert [int(run.data.params["number"]) for run in trials] == list(result.trials["number"])
    statuses = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
    assert [run.info.status for run in trials] == [statuses[s] for s in result.trials["state"]]
    assert len(client.search_runs([experiment])) == 1 + len(trials)


def test_a_comparison_has_a_run_of_its_own(make_line: MakeLine, store_uri: str) -> None:
    pytest.importorskip("matplotlib")
    table = compare(make_line(epochs=3).task, seeds=2, tracking_uri=store_uri)
    client = MlflowClient(tracking_uri=store_uri)
    experiment = client.get_experiment_by_name("lrsearch").experiment_id
    (run,) = client.search_runs([experiment], "tags.`lrsearch.kind` = 'comparison'")
    assert run.info.status == "FINISHED"
    studies = client.search_runs([experiment], "tags.`lrsearch.kind` = 'study'")
    assert set(run.data.tags["lrsearch.studies"].split(",")) == {s.info.run_id for s in studies}
    assert len(studies) == len(table) == 4
    kept = artifacts_of(client, run.info.run_id)
    assert {"comparison.csv", "comparison.parquet", "figures/comparison.png"} <= set(kept)
    budget = {"steps", "seconds", "trials", "train/lr", "val/loss", "test/mse"}
    for study in studies:
        missing = budget - set(study.data.metrics)
        assert missing <= {"train/lr", "val/loss", "test/mse"}  # where no rate was found
