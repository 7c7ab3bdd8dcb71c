"""Pictures of a study in the MLflow UI: a real server, a real browser, a wait for what must show.

    python docs/tools/study_screenshot.py sqlite:///mlruns/mlflow.db EXPERIMENT FOLDER

Saves ``runs_table.png``, ``runs_chart.png``, ``comparison.png`` and ``trial_metrics.png``. Needs
chromium and chromedriver (Debian: ``apt-get install chromium chromium-driver``). Exit status 1 if a
page does not show what it must; the page as it was is then in ``failed.png``.

A one-shot ``chromium --screenshot`` would do, were it not that it comes back with the spinners
that stand where the charts will be.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mlflow_pages import TALL, drawn_plots, enter, shows, tidy, unfold
from webdriver import Browser, PageError, browser

from lrsearch.errors import LrsearchError
from lrsearch_integrations.mlflow_store import absolute_uri, open_client
from lrsearch_integrations.mlflow_ui import HOST, free_port, server, ui_link
from lrsearch_integrations.mlflow_view import COMPARISON, STUDIES, TRIALS


def take(uri: str, experiment: str, folder: Path) -> None:
    """Save the pictures of the newest study of an experiment.

    Raises:
        PageError: if there is no study, or a page does not show what it must.
    """
    client = open_client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise PageError(f"no experiment {experiment!r} in {uri}")
    number = found.experiment_id
    studies = client.search_runs([number], "tags.`lrsearch.kind` = 'study'", max_results=2)
    if not studies:
        raise PageError(f"no study in the experiment {experiment!r}")
    trials = client.search_runs([number], f"tags.`mlflow.parentRunId` = '{studies[0].info.run_id}'")
    if not trials:
        raise PageError(f"the study {studies[0].info.run_name!r} has no trials")
    complete = [trial for trial in trials if trial.info.status == "FINISHED"]
    trial = (complete or trials)[0].info

    port = free_port()
    base = f"http://{HOST}:{port}"
    folder.mkdir(parents=True, exist_ok=True)
    with server(uri, port), browser(folder) as page:
        enter(page, base)
        page.resize(1800, 1000)
        page.visit(ui_link(base, number, view=STUDIES))
        for study in studies:
            unfold(page, study.info.run_name)
        page.wait(shows(trial.run_name), "the trials below their study")
        tidy(page)
        time.sleep(1.0)  # the columns' widths settle
        print(page.save("runs_table"))

        charts = "&compareRunsMode=CHART"
        picture_charts(page, "runs_chart", ui_link(base, number, view=TRIALS) + charts)
        picture_charts(page, "comparison", ui_link(base, number, view=COMPARISON) + charts)
        metrics = ui_link(base, number, trial.run_id).replace("?", "/model-metrics?")
        picture_charts(page, "trial_metrics", metrics, height=2400)


def picture_charts(page: Browser, name: str, url: str, height: int = 1700) -> None:
    """Save a page of charts as a picture, once they are drawn."""
    page.resize(1800, max(height, TALL[1]))
    page.visit(url)
    drawn_plots(page, 2)
    tidy(page)
    time.sleep(2.0)
    page.resize(1800, height)
    time.sleep(1.0)
    print(page.save(name))


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Pictures of a study in the MLflow UI.")
    parser.add_argument("tracking_uri")
    parser.add_argument("experiment")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        take(absolute_uri(options.tracking_uri), options.experiment, options.folder)
    except (PageError, LrsearchError) as error:
        print(f"study_screenshot: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
