"""Pictures of a study in the MLflow UI: a real server, a real browser, a wait for what must show.

    python docs/tools/study_screenshot.py sqlite:///mlruns/mlflow.db EXPERIMENT FOLDER

Saves ``runs_table.png``, ``runs_chart.png`` and ``trial_metrics.png``. Needs chromium and
chromedriver (Debian: ``apt-get install chromium chromium-driver``). Exit status 1 if a page does
not show what it must; the page as it was is then in ``failed.png``.

A one-shot ``chromium --screenshot`` would do, were it not that it comes back with the spinners
that stand where the charts will be.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrsearch.errors import LrsearchError
from lrsearch_integrations.mlflow_store import absolute_uri, open_client
from lrsearch_integrations.mlflow_ui import HOST, free_port, server, ui_link
from lrsearch_integrations.mlflow_view import STUDIES, TRIALS

# Plotly has drawn a line with points, not only its axes.
_DRAWN = """[...document.querySelectorAll('.js-plotly-plot path.js-line')]
    .filter(line => (line.getAttribute('d') || '').length > 20).length"""
# The assistant's panel would cover a quarter of the first page.
_NO_ASSISTANT = """localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
    localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')"""
# Trials are folded below their studies when the page opens.
_UNFOLD = """[...document.querySelectorAll('[role=row]')]
    .find(row => row.innerText.includes(%s))?.querySelector('button')?.click()"""
# Plotly's tool bars lie over the lines, and a notice about the shared view takes room.
_TIDY = """const style = document.createElement('style');
    style.textContent = '.modebar { display: none !important }';
    document.head.append(style);
    [...document.querySelectorAll('div')]
    .filter(block => block.innerText?.startsWith("You're viewing a shared view"))
    .map(block => [...block.querySelectorAll('button')].at(-1))
    .filter(Boolean).at(-1)?.click()"""


class PageError(Exception):
    """A page does not show what it must."""


class Browser:
    """A headless Chromium, driven over the W3C WebDriver protocol."""

    def __init__(self, port: int, folder: Path) -> None:
        self._address = f"http://{HOST}:{port}"
        self._folder = folder
        self._session = ""

    def open_session(self, profile: str) -> None:
        """Start the browser."""
        arguments = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--hide-scrollbars", "--no-first-run", "--disable-background-networking"),
            f"--user-data-dir={profile}",
        ]
        options = {"binary": shutil.which("chromium"), "args": arguments}
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self._session = self._call("/session", {"capabilities": wanted})["sessionId"]

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page; charts below its lower edge are never drawn."""
        self._command("/window/rect", {"width": width, "height": height})

    def visit(self, url: str) -> None:
        """Load a page afresh: a change behind the '#' alone would keep the old page's state."""
        for address in ("about:blank", url):
            self._command("/url", {"url": address})

    def run(self, script: str) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self._command("/execute/sync", {"script": script, "args": []})

    def wait(self, condition: str, what: str, seconds: float = 60.0) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            PageError: if it never is.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.run(f"return !!({condition})"):
                return
            time.sleep(0.25)
        self.save("failed")
        raise PageError(f"the page never showed {what}: see {self._folder / 'failed.png'}")

    def save(self, name: str) -> None:
        """Save the page as a picture."""
        picture = base64.b64decode(self._call(f"/session/{self._session}/screenshot"))
        file = self._folder / f"{name}.png"
        file.write_bytes(picture)
        print(file)

    def _command(self, path: str, body: dict[str, Any]) -> Any:
        return self._call(f"/session/{self._session}{path}", body)

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, content, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise PageError(error.read().decode()[:300]) from error


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start chromedriver and a browser of our own; end both, whatever happens."""
    if not (shutil.which("chromedriver") and shutil.which("chromium")):
        raise PageError("chromium and chromedriver are needed and not on the PATH")
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for_driver(port)
            page = Browser(port, folder)
            page.open_session(profile)
            yield page
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def _wait_for_driver(port: int) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/status", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise PageError("chromedriver did not start")


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
        page.visit(base)
        page.wait("document.body && document.body.innerText.length > 50", "anything")
        page.run(_NO_ASSISTANT)

        page.resize(1800, 1000)
        page.visit(ui_link(base, number, view=STUDIES))
        for study in studies:
            page.wait(_shows(study.info.run_name), "the study")
            page.run(_UNFOLD % json.dumps(study.info.run_name))
        page.wait(_shows(trial.run_name), "the trials below their study")
        page.run(_TIDY)
        time.sleep(1.0)  # the columns' widths settle
        page.save("runs_table")

        _picture_of_charts(
            page,
            "runs_chart",
            f"{ui_link(base, number, view=TRIALS)}&compareRunsMode=CHART",
        )
        _picture_of_charts(
            page,
            "trial_metrics",
            ui_link(base, number, trial.run_id).replace("?", "/model-metrics?"),
            height=2000,
        )


def _picture_of_charts(page: Browser, name: str, url: str, height: int = 1300) -> None:
    page.resize(1800, 2400)  # what lies below the lower edge is never drawn
    page.visit(url)
    page.wait(f"{_DRAWN} >= 2", "two drawn lines")
    page.run(_TIDY)
    time.sleep(2.0)
    page.resize(1800, height)
    time.sleep(1.0)
    page.save(name)


def _shows(text: str) -> str:
    return f"document.body.innerText.includes({json.dumps(text)})"


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
