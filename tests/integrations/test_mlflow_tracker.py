"""What a run records, in batches, and how it ends; on a real SQLite store."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

import optuna

from lrsearch.errors import InvalidArgumentError, InvalidTypeError, LrsearchError
from lrsearch.tracking import RunTracker, find_tracker
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_store import (
    StoreError,
    experiment_id,
    open_client,
)
from lrsearch_integrations.mlflow_tracker import MlflowRun, attach_run, open_study_run
from lrsearch_integrations.spool import SpooledRun


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the metric batches that are sent; single metrics are not allowed."""
    sizes: list[int] = []
    send = MlflowClient.log_batch

    def log_batch(self: MlflowClient, run_id: str, metrics: Any = (), *rest: Any, **kw: Any) -> Any:
        if metrics:
            sizes.append(len(metrics))
        return send(self, run_id, metrics, *rest, **kw)

    def log_metric(*_: Any, **__: Any) -> None:
        raise AssertionError("one call per metric")

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(MlflowClient, "log_metric", log_metric)
    return sizes


def client_of(run: MlflowRun) -> MlflowClient:
    return MlflowClient(tracking_uri=run.tracking_uri)


def download(run: MlflowRun, name: str, folder: Path) -> Path:
    return Path(client_of(run).download_artifacts(run.run_id, name, str(folder)))


# --- what is recorded ------------------------------------------------------------------------


def test_the_tracker_is_found_by_its_entry_point_and_keeps_the_protocol(study: MlflowRun) -> None:
    tracker: RunTracker = study
    assert tracker.run_id
    with contextlib.suppress(LrsearchError):  # not installed as a package here
        assert find_tracker("mlflow") is open_study_run


def test_a_training_is_written_in_batches_and_without_loss(
    study: MlflowRun, calls: list[int]
) -> None:
    steps = 3000
    for step in range(steps):
        study.log_metrics({"train/loss": 1.0 / (step + 1), "train/lr": 0.1}, step)
    study.finish("complete")
    assert sum(calls) == 2 * steps
    assert max(calls) <= 1000
    assert len(calls) <= 2 * steps / 500 + 5
    history = client_of(study).get_metric_history(study.run_id, "train/loss")
    assert [point.step for point in history] == list(range(steps))
    assert history[-1].value == 1.0 / steps


def test_an_end_that_a_dead_process_has_written_does_not_close_the_run_of_who_goes_on(
    study: MlflowRun,
) -> None:
    dead = study.child("trial", uid="trial-0")
    run_id = dead.run_id
    # Killed before its end was sent: the folder is there, and nobody holds it.
    dead._sender.let_go(dead._delivery)
    dead._closed = True
    left = SpooledRun(dead._spooled.folder)
    assert left.acquire()
    left.open()
    left.write("e", "failed", 1)
    left.release()
    again = study.child("trial", uid="trial-0")
    assert again.flush()
    assert client_of(study).get_run(run_id).info.status == "RUNNING"
    again.log_metrics({"train/loss": 0.5}, 3)
    again.finish("complete")
    run = client_of(study).get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/loss": 0.5})


def test_slow_values_are_sent_after_two_seconds_without_another_call(
    study: MlflowRun, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study.run_id
    study.log_metrics({"a": 1.0}, 0)
    end = time.monotonic() + 20
    while not calls and time.monotonic() < end:
        time.sleep(0.05)
    assert calls == [1]


def test_times_are_those_of_logging_and_not_of_writing(study: MlflowRun) -> None:
    before = time.time_ns() // 1_000_000
    study.log_metrics({"a": 1.0}, 0)
    after = time.time_ns() // 1_000_000
    time.sleep(0.05)
    study.finish("complete")
    (point,) = client_of(study).get_metric_history(study.run_id, "a")
    assert before <= point.timestamp <= after


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_and_not_sent(study: MlflowRun, bad: float) -> None:
    for step, loss in enumerate([1.0, 2.0, bad, bad, 3.0]):
        study.log_metrics({"train/loss": loss, "train/lr": 0.1}, step)
    study.finish("failed")
    data = client_of(study).get_run(study.run_id).data
    assert data.tags["lrsearch.nonfinite_steps"] == "2"
    assert data.metrics["diverged_at_step"] == 2.0
    history = client_of(study).get_metric_history(study.run_id, "train/loss")
    assert [point.value for point in history] == [1.0, 2.0, 3.0]
    assert len(client_of(study).get_metric_history(study.run_id, "train/lr")) == 5


def test_an_undefined_statistic_is_no_divergence(study: MlflowRun) -> None:
    study.log_metrics({"window/f_statistic": math.inf, "window/pvalue": math.nan}, 99)
    study.finish("complete")
    data = client_of(study).get_run(study.run_id).data
    assert data.tags["lrsearch.nonfinite_steps"] == "1"
    assert "diverged_at_step" not in data.metrics


def test_a_metric_that_is_no_number_is_misuse(study: MlflowRun) -> None:
    with pytest.raises(InvalidTypeError, match="'train/loss' must be a number, got None"):
        study.log_metrics({"train/loss": None}, 0)  # type: ignore[dict-item]  # the point


def test_odd_keys_do_not_cost_their_batch(study: MlflowRun) -> None:
    study.log_metrics({"loss(1)": 1.0, "../up": 2.0, "k" * 300: 3.0, "λ/max": 4.0, "": 5.0}, 0)
    study.finish("complete")
    metrics = client_of(study).get_run(study.run_id).data.metrics
    assert metrics == {"loss_1_": 1.0, "up": 2.0, "k" * 250: 3.0, "λ/max": 4.0, "_": 5.0}


def test_params_are_texts_json_where_nested_and_cut_where_too_long(study: MlflowRun) -> None:
    study.log_params({"lr": 0.1, "layers": [64, 32], "rule": {"beta": 0.33}, "none": None})
    study.log_params({"long": "x" * 9000, **{f"p{i}": i for i in range(150)}})
    study.log_params({"lr": 0.2})  # the first value stays
    assert study.flush()
    params = client_of(study).get_run(study.run_id).data.params
    assert params["lr"] == "0.1"
    assert json.loads(params["layers"]) == [64, 32]
    assert json.loads(params["rule"]) == {"beta": 0.33}
    assert params["none"] == "None"
    assert len(params["long"]) == 6000
    assert params["long"].endswith("…")
    assert params["p149"] == "149"


def test_tags_are_passed_on_and_replaced(store_uri: str) -> None:
    with open_study_run(
        experiment="digits",
        name="study",
        tracking_uri=store_uri,
        tags={"lrsearch.method": "exptest", "seed": 3},
    ) as run:
        run.set_tags({"seed": 4})
    tags = client_of(run).get_run(run.run_id).data.tags
    assert tags["lrsearch.method"] == "exptest"
    assert tags["lrsearch.kind"] == "study"
    assert tags["seed"] == "4"
    assert tags["mlflow.runName"] == "study"
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(tags)


def test_a_table_is_equal_in_parquet_and_csv(study: MlflowRun, tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"step": [1, 2, 3], "pvalue": [1 / 3, 1e-300, None], "kind": ["accept", "über", "a,b"]}
    )
    study.log_table("windows", table)
    study.finish("complete")
    parquet = pd.read_parquet(download(study, "windows.parquet", tmp_path))
    csv = pd.read_csv(download(study, "windows.csv", tmp_path))
    pd.testing.assert_frame_equal(parquet, csv)
    pd.testing.assert_frame_equal(parquet, table)


def test_a_table_with_mixed_cells_is_stored_as_text(study: MlflowRun, tmp_path: Path) -> None:
    table = pd.DataFrame({"value": [1, "two", [3]]}, index=[5, 6, 7])
    study.log_table("tables/odd", table)
    assert study.flush()
    parquet = pd.read_parquet(download(study, "tables/odd.parquet", tmp_path))
    assert list(parquet["index"]) == [5, 6, 7]
    assert list(parquet["value"]) == ["1", "two", "[3]"]


def test_a_figure_becomes_a_picture(study: MlflowRun, tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figure.subplots().plot([1, 2, 3])
    study.log_figure("curves", figure)
    assert study.flush()
    assert download(study, "curves.png", tmp_path).read_bytes().startswith(b"\x89PNG")


# --- statuses and nesting --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "shown", "state"),
    [
        ("complete", "FINISHED", "COMPLETE"),
        ("pruned", "KILLED", "PRUNED"),
        ("failed", "FAILED", "FAIL"),
    ],
)
def test_a_trial_ends_with_its_true_status(
    study: MlflowRun, status: Any, shown: str, state: str
) -> None:
    trial = study.child("trial-0", tags={"lrsearch.method": "exptest"})
    before = client_of(study).get_run(trial.run_id)
    assert before.info.status == "RUNNING"
    trial.finish(status)
    trial.finish("failed")  # a second call does nothing
    run = client_of(study).get_run(trial.run_id)
    assert run.info.status == shown
    assert run.info.end_time is not None
    assert run.data.tags["lrsearch.trial_state"] == state
    assert run.data.tags["mlflow.parentRunId"] == study.run_id
    assert run.data.tags["lrsearch.method"] == "exptest"
    assert run.info.experiment_id == client_of(study).get_run(study.run_id).info.experiment_id


def test_an_unknown_status_is_misuse(study: MlflowRun) -> None:
    with pytest.raises(InvalidArgumentError, match="'complete', 'pruned', 'failed', got 'done'"):
        study.finish("done")  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize(
    ("error", "shown"), [(optuna.TrialPruned, "KILLED"), (KeyboardInterrupt, "FAILED")]
)
def test_the_context_manager_tells_pruned_from_failed(
    study: MlflowRun, error: type[BaseException], shown: str
) -> None:
    trial = study.child("trial")
    with pytest.raises(error), trial:
        raise error
    assert client_of(study).get_run(trial.run_id).info.status == shown


def test_trials_in_threads_do_not_mix(study: MlflowRun) -> None:
    trials = [study.child(f"trial-{k}") for k in range(4)]

    def work(k: int) -> None:
        for step in range(600):
            trials[k].log_metrics({"k": float(k)}, step)
            study.log_metrics({f"shared/{k}": 1.0}, step)
        trials[k].finish("complete")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study.finish("complete")
    client = client_of(study)
    for k, trial in enumerate(trials):
        history = client.get_metric_history(trial.run_id, "k")
        assert [point.value for point in history] == [float(k)] * 600
        assert len(client.get_metric_history(study.run_id, f"shared/{k}")) == 600


def test_another_holder_of_the_id_goes_on_with_the_run(study: MlflowRun) -> None:
    other = attach_run(study.run_id, study.tracking_uri)
    other.log_metrics({"val/loss": 0.5}, 10)
    other.flush()
    run = client_of(study).get_run(study.run_id)
    assert run.data.metrics == {"val/loss": 0.5}
    assert run.info.status == "RUNNING"
    with pytest.raises(StoreError, match="no run 'none'"):
        attach_run("none", study.tracking_uri)


@pytest.mark.slow
def test_a_script_that_never_finishes_its_run_loses_nothing_and_counts_as_failed(
    store_uri: str,
) -> None:
    code = f"""if True:
        from lrsearch_integrations.mlflow_tracker import open_study_run
        run = open_study_run(experiment="digits", name="study", tracking_uri={store_uri!r})
        for step in range(300):
            run.log_metrics({{"train/loss": 1.0}}, step)
        """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
    client = open_client(store_uri)
    (run,) = client.search_runs([experiment_id(client, "digits", store_uri)])
    assert run.info.status == "FAILED"
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 300


def test_the_views_of_a_study_are_saved_once_with_its_experiment(study: MlflowRun) -> None:
    experiment = client_of(study).get_experiment_by_name("digits")
    assert experiment is not None
    for view in ("lrsearch-studies", "lrsearch-trials"):
        state = json.loads(json.loads(experiment.tags[f"mlflow.sharedViewState.{view}"])["state"])
        assert "metrics.`train/lr`" in state["selectedColumns"]


def test_a_run_of_that_uid_goes_on_after_it_was_closed(store_uri: str) -> None:
    opened = []
    for _ in range(2):
        run = open_study_run(experiment="e", name="study", tracking_uri=store_uri, uid="mine")
        run.child("trial", uid=f"mine-{len(opened)}").finish("complete")
        run.log_metrics({"a": float(len(opened))}, step=len(opened))
        opened.append(run.run_id)
        client = MlflowClient(tracking_uri=store_uri)
        assert client.get_run(run.run_id).info.status == "RUNNING"
        run.finish("complete")
        assert client.get_run(run.run_id).info.status == "FINISHED"
    assert opened[0] == opened[1]
    assert [point.value for point in client.get_metric_history(opened[0], "a")] == [0.0, 1.0]
    found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert len(found) == 3


def test_a_run_that_another_process_holds_is_joined(store_uri: str) -> None:
    first = open_study_run(experiment="e", name="study", tracking_uri=store_uri, uid="mine")
    # A second writer in this process meets the same lock as one in another process.
    second = open_study_run(experiment="e", name="study", tracking_uri=store_uri, uid="mine")
    assert second.run_id == first.run_id
    second.log_metrics({"b": 2.0}, step=0)
    child = second.child("trial", uid="mine-1")
    child.finish("complete")
    second.finish("complete")
    first.log_metrics({"a": 1.0}, step=0)
    first.finish("complete")
    client = MlflowClient(tracking_uri=store_uri)
    found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert len(found) == 2
    parent = client.get_run(first.run_id)
    assert parent.data.metrics == {"a": 1.0, "b": 2.0}
    trial = client.get_run(child.run_id or next(r.info.run_id for r in found if r != parent))
    assert trial.data.tags["mlflow.parentRunId"] == first.run_id
