"""What to do on MLflow's pages, and what they show: read from the page, not from its pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass

from webdriver import Browser

# MLflow asks its server for so many points of a curve at most.
POINTS_DRAWN = 320
# Charts below the lower edge of the window are never drawn: this shows the views' own charts.
TALL = (1800, 1700)

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
# What Plotly holds, and whether it has drawn lines with points and not only its axes.
_PLOTS = """return [...document.querySelectorAll('.js-plotly-plot')].map(plot => ({
    axis: plot.layout?.yaxis?.type ?? '',
    lines: [...plot.querySelectorAll('path.js-line')]
        .filter(line => (line.getAttribute('d') || '').length > 20).length,
    traces: (plot.data || []).map(trace => ({
        name: trace.name ?? '', key: trace.metricKey ?? '',
        x: Array.from(trace.x || []), y: Array.from(trace.y || [])}))}))"""
_NAMES = """return [...document.querySelectorAll('[role=row]')].map(row => row.innerText)"""


@dataclass(frozen=True, slots=True)
class Trace:
    """One run's curve in a chart.

    Attributes:
        name: of the run.
        metric: which it shows.
        steps, values: the points; None for what is not finite.
    """

    name: str
    metric: str
    steps: list[float | None]
    values: list[float | None]


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart of the page.

    Attributes:
        axis: kind of its vertical axis, "linear" or "log".
        lines: how many lines are drawn.
        traces: its curves.
    """

    axis: str
    lines: int
    traces: list[Trace]

    @property
    def metric(self) -> str:
        """What it shows."""
        return self.traces[0].metric if self.traces else ""


def enter(page: Browser, base: str) -> None:
    """Load the application for the first time, without its assistant."""
    page.resize(*TALL)
    page.visit(base)
    page.wait("document.body && document.body.innerText.length > 50", "anything")
    page.run(_NO_ASSISTANT)


def shows(text: str) -> str:
    """Return the condition that the page says something."""
    return f"document.body.innerText.includes({json.dumps(text)})"


def unfold(page: Browser, run_name: str) -> None:
    """Show the children of a run in the table."""
    page.wait(shows(run_name), f"the run {run_name!r}")
    page.run(_UNFOLD % json.dumps(run_name))


def tidy(page: Browser) -> None:
    """Take away what would be in a picture's way."""
    page.run(_TIDY)


def rows(page: Browser) -> list[str]:
    """Return the text of each row of the table."""
    return [str(row) for row in page.run(_NAMES)]


def plots(page: Browser) -> list[Plot]:
    """Return the charts of the page, with the data that Plotly holds."""
    return [
        Plot(
            axis=each["axis"],
            lines=each["lines"],
            traces=[
                Trace(trace["name"], trace["key"], trace["x"], trace["y"])
                for trace in each["traces"]
            ],
        )
        for each in page.run(_PLOTS)
    ]


def drawn_plots(page: Browser, least: int, seconds: float = 60.0) -> list[Plot]:
    """Wait for at least so many charts, each with a curve in it, and return them.

    Raises:
        PageError: if they never come.
    """
    seen: list[Plot] = []

    def ready() -> bool:
        # Twice the same: curves come one by one.
        nonlocal seen
        before, seen = seen, [plot for plot in plots(page) if plot.traces]
        return len(seen) >= least and seen == before

    page.wait_until(ready, f"{least} charts with curves", seconds)
    return seen
