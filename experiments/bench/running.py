"""One call of ``lrsearch bench``: measure what is missing of a panel, replay, report."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

import pandas as pd

from experiments.bench.methods import check_methods, measure, not_installed, own_updates
from experiments.bench.panel import Panel, cell_title, read_panel
from experiments.bench.replaying import banks_of, replayed
from experiments.bench.reporting import panel_report
from experiments.bench.tasks import BASES
from experiments.harness.cells import Cell
from experiments.harness.reproduction import (
    Plan,
    Report,
    Reproduced,
    Reproduction,
    Results,
    Watcher,
    code_version,
    run,
)
from lrsearch.engine.workers.placement import cores
from lrsearch.errors import InvalidArgumentError
from lrsearch.tasks.sources import at_hand

PANEL: Final = Path(__file__).resolve().parents[2] / "benchmarks" / "panel.yaml"


def bench(
    path: Path | None = None,
    *,
    quick: bool = False,
    only: str | None = None,
    report_only: bool = False,
    out: Path | None = None,
    workers: int | None = None,
    minutes: float = inf,
    fresh: bool = False,
    data_dir: str | None = None,
    watcher: Watcher | None = None,
) -> Reproduced:
    """Run a panel, or go on with it, and report on everything that is there.

    Args:
        path: of the panel's file; default: the checkout's own.
        quick: its quick cut.
        only: regular expression, searched in base/shift/optimizer/method: what is measured.
        report_only: measure nothing.
        out: folder; default ``reproductions/bench/full`` or ``quick`` here.
        workers: processes; default one per core.
        minutes: begin no cell later than this; the report, with its replays, comes after.
        fresh: measure finished cells anew.
        data_dir: folder with the data that do not come with scikit-learn.
        watcher: is told about progress.

    Raises:
        InvalidArgumentError: on a bad panel, expression or folder.
        MissingDataError: if a worker was killed, or there is nothing to show yet.
    """
    panel = read_panel(path or PANEL)
    check_methods(panel)
    panel, left_out = _at_hand(panel.cut() if quick else panel, data_dir)
    cells = panel.cells(own_updates())
    chosen = _chooser(only, cells)
    plan = Plan(scale="quick" if quick else "full", data_dir=data_dir)
    folder = out or Path("reproductions", "bench", plan.scale)
    count = workers or cores()
    reproduction = Reproduction(
        name="bench",
        title="methods on shifted tasks, against dense banks of fixed rates",
        settings=lambda plan: {},
        cells=lambda plan: cells,
        measure=measure,
        report=partial(_report, panel=panel, out=folder, workers=count, left_out=left_out),
    )
    return run(
        reproduction,
        plan,
        out=folder,
        workers=count,
        fresh=fresh,
        minutes=minutes,
        watcher=watcher,
        only=(lambda cell: False) if report_only else chosen,
    )


def _at_hand(panel: Panel, data_dir: str | None) -> tuple[Panel, list[str]]:
    """The panel without what this machine has no data or package for, and what that is."""
    bases = {
        name: base
        for name, base in panel.bases.items()
        if BASES[name].embedded or at_hand(BASES[name].dataset, data_dir)
    }
    missing = not_installed(panel)
    methods = {name: each for name, each in panel.methods.items() if name not in missing}
    left_out = [f"{name} (no data at hand)" for name in panel.bases if name not in bases]
    left_out += [f"{name} (package {package!r})" for name, package in missing.items()]
    return replace(panel, bases=bases, methods=methods), left_out


def _chooser(only: str | None, cells: list[Cell]) -> Callable[[Cell], bool] | None:
    if only is None:
        return None
    try:
        wanted = re.compile(only)
    except re.error as error:
        raise InvalidArgumentError(
            f"--only must be a regular expression, got {only!r}: {error}"
        ) from error
    if cells and not any(wanted.search(cell_title(cell)) for cell in cells):
        raise InvalidArgumentError(
            f"--only matches no cell, got {only!r}: they are named as {cell_title(cells[0])!r}"
        )
    return lambda cell: wanted.search(cell_title(cell)) is not None


def _report(
    results: Results, plan: Plan, *, panel: Panel, out: Path, workers: int, left_out: list[str]
) -> Report:
    replays = replayed(panel, results, out=out, workers=workers, version=code_version())
    rows = pd.concat([results.rows, replays], ignore_index=True) if len(replays) else results.rows
    return panel_report(panel, rows, banks_of(results), left_out=left_out)
