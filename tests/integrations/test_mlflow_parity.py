"""The same numbers in the store's metrics and in the tables, whatever store it is.

A real training under ExpTest, recorded in SQLite, through ``mlflow server``, and in PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

pytest.importorskip("mlflow", exc_type=ImportError)

from postgres import PostgresServer
from spools import wait_until_sent

from lrsearch import ExpTest
from lrsearch.windows import WindowStats
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_store import open_client
from lrsearch_integrations.mlflow_tracker import open_study_run
from lrsearch_integrations.mlflow_ui import HOST, free_port, server

STEPS, STRIDE = 3000, 3
# Metric and column of windows.parquet; the planned length is a column of its own.
COLUMNS = (
    "f_statistic",
    "pvalue",
    "slope",
    "t_statistic",
    "n_effective",
    "correction",
    "sse_linear",
    "sse_exponential",
    "lr",
)


@dataclass(frozen=True)
class Training:
    """What was trained, as the training itself saw it."""

    uri: str
    run_id: str
    losses: list[float]
    windows: list[WindowStats]

    def history(self, client: MlflowClient, metric: str) -> dict[int, float]:
        points = client.get_metric_history(self.run_id, metric)
        found = {point.step: point.value for point in points}
        assert len(found) == len(points), f"{metric} has a step twice"
        return found


@pytest.fixture(params=["sqlite", "http", "postgresql"])
def uri(
    request: pytest.FixtureRequest, store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)  # where a store without a folder of its own leaves its artifacts
    if request.param == "sqlite":
        yield store_uri
    elif request.param == "http":
        port = free_port()
        with server(store_uri, port):
            yield f"http://{HOST}:{port}"
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        yield postgres.create_database("parity")


def train(uri: str) -> Training:
    """Train a small network with ExpTest, every loss kept aside."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 8, generator=generator)
    targets = inputs @ torch.randn(8, 1, generator=generator)
    targets += 0.1 * torch.randn(512, 1, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses: list[float] = []
    with open_study_run(experiment="parity", name="study", tracking_uri=uri) as study:
        run = study.child("trial")
        controller = ExpTest(optimizer, model=model, total_steps=STEPS, tracker=run)
        for _ in range(STEPS):
            rows = torch.randint(512, (32,), generator=generator)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs[rows]), targets[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if controller.step(loss).kind == "stop":
                break
        rows_of_windows = [window.as_dict() for window in controller.windows]
        run.log_table("windows", pd.DataFrame(rows_of_windows))
        run_id = run.run_id
        run.finish("complete")
    return Training(uri, run_id, losses, controller.windows)


@pytest.mark.slow
def test_what_the_store_has_is_what_was_trained_and_what_the_tables_hold(
    uri: str, tmp_path: Path
) -> None:
    training = train(uri)
    client = open_client(uri)
    wait_until_sent(uri)
    assert client.get_run(training.run_id).info.status == "FINISHED"

    folder = tmp_path / "downloads"
    folder.mkdir()
    steps = pd.read_parquet(
        client.download_artifacts(training.run_id, "curves/steps.parquet", str(folder))
    )
    assert list(steps["step"]) == list(range(len(training.losses)))
    np.testing.assert_array_equal(steps["loss"], np.array(training.losses))

    kept = training.history(client, "train/loss")
    assert list(kept) == list(range(0, len(training.losses), STRIDE))
    np.testing.assert_array_equal(list(kept.values()), steps["loss"].iloc[list(kept)])
    rates = training.history(client, "train/lr")
    np.testing.assert_array_equal(list(rates.values()), steps["lr"].iloc[list(rates)])

    windows = pd.read_parquet(
        client.download_artifacts(training.run_id, "windows.parquet", str(folder))
    )
    pd.testing.assert_frame_equal(
        windows, pd.DataFrame([window.as_dict() for window in training.windows])
    )
    assert len(windows) > 3
    windows = windows.set_index(windows["stop"] - 1)
    assert windows.index.is_unique
    expected = {f"window/{column}": windows[column] for column in COLUMNS}
    expected["window/length"] = (windows["stop"] - windows["start"]).astype(float)
    expected["window/log10_pvalue"] = np.log10(windows["pvalue"].clip(lower=1e-300))
    for metric, column in expected.items():
        finite = column[np.isfinite(column)]
        history = training.history(client, metric)
        assert list(history) == list(finite.index), metric
        np.testing.assert_allclose(list(history.values()), finite, rtol=1e-15, err_msg=metric)
    stored = {key for key in client.get_run(training.run_id).data.metrics if "window/" in key}
    assert stored == set(expected)

    for name, reduce in (("min", np.min), ("max", np.max), ("mean", np.mean)):
        history = training.history(client, f"train/loss_{name}")
        ends = [-1, *history]
        for before, end in zip(ends, history, strict=False):
            window = training.losses[before + 1 : end + 1]
            assert history[end] == pytest.approx(reduce(window), rel=1e-12)
        assert ends[-1] == len(training.losses) - 1
