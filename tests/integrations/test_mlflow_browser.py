"""What a person sees: a study in the MLflow UI, read from the pages of a real browser.

Needs Debian's chromium and chromium-driver; ``.ci/run`` installs them. On a quiet machine a minute,
most of it the start of MLflow's server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from mlflow_pages import POINTS_DRAWN, Plot, Trace, drawn_plots, enter, rows, shows, unfold
from spools import wait_until_sent
from webdriver import Browser, browser, missing_programs

from lrsearch import SearchResult, search
from lrsearch.training.curve import CurveLog
from lrsearch_integrations import mlflow_tracker
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_store import open_client
from lrsearch_integrations.mlflow_tracker import MlflowRun, open_study_run
from lrsearch_integrations.mlflow_ui import HOST, free_port, server, ui_link
from lrsearch_integrations.mlflow_view import COMPARISON, STUDIES, TRIALS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing_programs()),
        reason=f"no {' and no '.join(missing_programs())} on the PATH (Debian: chromium, "
        "chromium-driver)",
    ),
]
CHARTS = "&compareRunsMode=CHART"
AXES = {
    "train/loss": "log",
    "train/loss_max": "log",
    "train/lr": "log",
    "val/loss": "log",
    "window/pvalue": "log",
    "window/f_statistic": "log",
    "window/slope": "linear",
}
SPIKE, SPIKE_AT, SPIKE_STEPS = 50.0, 12_345, 20_000


@dataclass(frozen=True)
class Record:
    """Two studies of one task, and a run in each kind of trouble."""

    uri: str
    client: MlflowClient
    exptest: SearchResult
    grid: SearchResult
    spike: str
    broken: str

    @property
    def experiment(self) -> str:
        return self.experiment_of(self.exptest.run_id)

    def experiment_of(self, run_id: str) -> str:
        return str(self.client.get_run(run_id).info.experiment_id)

    def children(self, parent: str) -> list[Any]:
        """The runs of a study's trials; probes of its race are in no view."""
        search_filter = f"tags.`mlflow.parentRunId` = '{parent}'"
        runs = self.client.search_runs([self.experiment], search_filter)
        return [run for run in runs if run.data.tags["lrsearch.kind"] != "probe"]

    def lengths(self, runs: list[Any], metric: str) -> dict[str, int]:
        """Points of a metric, by the name of the run; runs without it are left out."""
        found = {
            run.info.run_name: len(self.client.get_metric_history(run.info.run_id, metric))
            for run in runs
        }
        return {name: points for name, points in found.items() if points}


@pytest.fixture(scope="module")
def record(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    path = tmp_path_factory.mktemp("browser") / "mlruns" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(mlflow_template.read_bytes())
    uri = f"sqlite:///{path}"
    with pytest.MonkeyPatch.context() as patch:
        # The tracker of this checkout, whatever is installed.
        patch.setattr(
            "lrsearch.engine.record.find_tracker", lambda name: mlflow_tracker.open_study_run
        )
        exptest = search("digits-mlp", epochs=12, tracking_uri=uri)
        grid = search("digits-mlp", method="grid", trials=3, epochs=12, tracking_uri=uri)
    with open_study_run(experiment="trouble", name="troubled", tracking_uri=uri) as study:
        spiked = np.exp(-np.arange(SPIKE_STEPS) / 8000.0)
        spiked[SPIKE_AT] = SPIKE
        broken = np.exp(np.arange(200) / 20.0)
        broken[-2:] = np.inf, np.nan
        ids = [write_curve(study, "spike", spiked, 500), write_curve(study, "broken", broken, 50)]
    wait_until_sent(uri)
    return Record(uri, open_client(uri), exptest, grid, *ids)


def write_curve(study: MlflowRun, name: str, losses: Any, window: int) -> str:
    with study.child(name) as run:
        curve = CurveLog(run, len(losses))
        for start in range(0, len(losses), window):
            curve.extend(losses[start : start + window], start, 0.1)
        assert run.flush()
        return run.run_id


@pytest.fixture(scope="module")
def base(record: Record) -> Iterator[str]:
    port = free_port()
    with server(record.uri, port):
        yield f"http://{HOST}:{port}"


@pytest.fixture(scope="module")
def page(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("pictures")) as opened:
        enter(opened, base)
        yield opened


def traces(plot: Plot) -> dict[str, Trace]:
    return {trace.name: trace for trace in plot.traces}


def test_the_studies_view_has_each_trial_below_its_study_with_its_rate_and_loss(
    page: Browser, base: str, record: Record
) -> None:
    page.visit(ui_link(base, record.experiment, view=STUDIES))
    page.wait(shows("digits-mlp exptest seed 0"), "the study")
    assert not any("rung 0" in row for row in rows(page))  # folded
    for name in ("digits-mlp exptest seed 0", "digits-mlp grid seed 0"):
        unfold(page, name)
    trials = [
        *record.children(record.exptest.run_id),
        *record.children(record.grid.run_id),
    ]
    for trial in trials:
        page.wait(shows(trial.info.run_name), f"the trial {trial.info.run_name!r}")
    table = "\n".join(rows(page))
    for column in ("train/lr", "train/loss", "window/pvalue", "lrsearch.trial_state", "steps"):
        assert column in table
    for trial in trials:
        assert trial.data.params["lr"] in table
        assert str(trial.data.metrics["train/loss"])[:8] in table


def test_the_trials_view_draws_every_curve_with_logarithmic_rates_losses_and_p_values(
    page: Browser, base: str, record: Record
) -> None:
    page.visit(ui_link(base, record.experiment, view=TRIALS) + CHARTS)
    charts = {plot.metric: plot for plot in drawn_plots(page, len(AXES))}
    assert {metric: plot.axis for metric, plot in charts.items()} == AXES
    trials = record.children(record.exptest.run_id)
    longest = 0
    for metric, plot in charts.items():
        kept = record.lengths(trials, metric)
        shown = {name: len(trace.steps) for name, trace in traces(plot).items()}
        assert shown == {name: min(points, POINTS_DRAWN) for name, points in kept.items()}
        longest = max(longest, *kept.values())
    assert longest > POINTS_DRAWN  # so that both sides of the limit are seen


def test_the_comparison_view_puts_exptest_beside_the_grid(
    page: Browser, base: str, record: Record
) -> None:
    page.visit(ui_link(base, record.experiment, view=COMPARISON) + CHARTS)
    charts = {plot.metric: plot for plot in drawn_plots(page, len(AXES))}
    names = {
        run.info.run_name
        for parent in (record.exptest.run_id, record.grid.run_id)
        for run in record.children(parent)
    }
    assert sum("grid" in name for name in names) == 3
    for metric in ("train/loss", "train/loss_max", "train/lr"):
        assert traces(charts[metric]).keys() == names
        assert charts[metric].lines >= len(names) - 1  # a line outside the axis is none
    assert all("exptest" in name for name in traces(charts["window/pvalue"]))


def test_a_spike_of_one_step_shows_in_the_largest_loss_of_its_window(
    page: Browser, base: str, record: Record
) -> None:
    link = ui_link(base, record.experiment_of(record.spike), record.spike)
    page.visit(link.replace("?", "/model-metrics?"))
    shown = {plot.metric: traces(plot)["spike"] for plot in drawn_plots(page, 4) if plot.metric}
    losses, largest = shown["train/loss"], shown["train/loss_max"]
    assert len(losses.values) == POINTS_DRAWN
    assert max(value for value in losses.values if value is not None) < 2.0
    assert len(largest.values) == SPIKE_STEPS // 500
    peak = largest.values.index(SPIKE)
    assert largest.steps[peak] == SPIKE_AT // 500 * 500 + 499


def test_a_curve_that_ends_in_infinity_and_nan_is_drawn_up_to_there(
    page: Browser, base: str, record: Record
) -> None:
    link = ui_link(base, record.experiment_of(record.broken), record.broken)
    page.visit(link.replace("?", "/model-metrics?"))
    charts = {plot.metric: plot for plot in drawn_plots(page, 4) if plot.metric}
    plot = charts["train/loss"]
    assert plot.lines >= 1
    curve = traces(plot)["broken"]
    assert curve.steps == list(range(198))
    assert curve.values[-1] == pytest.approx(np.exp(197 / 20.0))
    tags = record.client.get_run(record.broken).data.tags
    assert tags["lrsearch.nonfinite_steps"] == "2"
