"""What a reproduction is, and how one is run: cells, tables, figures, record."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.harness.cells import Cell, CellStore, Measured, cell_name, run_cells
from lrsearch.errors import (
    InvalidArgumentError,
    MissingDataError,
    require_at_least,
    require_choice,
)
from lrsearch.training.checkpoints import Checkpoint
from lrsearch.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALES = ("full", "quick")
CURVE = "curve"  # column of a result: number of its loss curve
RUN = "run"  # column of an epoch: number of its result
SEED = "seed"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a user chose.

    Attributes:
        scale: "full" (the paper's) or "quick" (the cut that CI runs).
        seeds: independent runs of each setting; None for the reproduction's own number.
        data_dir: folder with data files; None for the usual places.
        checkpoints: folder for what long cells need to go on after a kill; ``run`` sets it.
        deadline: of ``time.monotonic()``, which processes of a machine share; long cells stop at
            the next place from which they can go on. ``run`` sets it.

    Raises:
        InvalidArgumentError: if a choice is not allowed.
    """

    scale: str = "full"
    seeds: int | None = None
    data_dir: str | None = None
    checkpoints: Path | None = None
    deadline: float = inf

    def __post_init__(self) -> None:
        require_choice("scale", self.scale, SCALES)
        if self.seeds is not None:
            require_at_least("seeds", self.seeds, 1)

    @property
    def quick(self) -> bool:
        """Whether this is the cut."""
        return self.scale == "quick"

    def seed_range(self, *, full: int = 5, quick: int = 2) -> range:
        """The seeds 0, 1, ... of this plan."""
        return range(self.seeds or (quick if self.quick else full))

    def checkpoint(self, settings: Mapping[str, Any], cell: Cell) -> Checkpoint | None:
        """Where a cell under these settings keeps how far it is; None outside of ``run``."""
        if self.checkpoints is None:
            return None
        return Checkpoint(self.checkpoints / f"{cell_name(settings, cell)}.pt")


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured.

    Attributes:
        rows: one row per run; the column "curve" numbers its loss curve, where it has one.
        curves: per-step losses, each of shape (steps,).
        epochs: one row per epoch of those that have any; the column "run" is the index in ``rows``.
    """

    rows: pd.DataFrame
    curves: Sequence[NDArray[np.float32]]
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame)

    def curves_of(self, rows: pd.DataFrame) -> list[NDArray[np.float32]]:
        """The loss curves of some of the rows."""
        return [self.curves[int(number)] for number in rows[CURVE]]

    def epochs_of(self, run: int) -> pd.DataFrame:
        """The epochs of the row with that index; empty if it has none."""
        if not len(self.epochs):
            return self.epochs
        return self.epochs[self.epochs[RUN] == run].drop(columns=[RUN])


@dataclass(frozen=True, slots=True)
class Report:
    """What a reproduction shows.

    Attributes:
        text: for the terminal.
        tables: by name; each becomes a Parquet file and an artifact.
        figures: by name; each becomes a PNG file and an artifact.
        summary: single numbers for the parent run.
    """

    text: str
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)


class Measure(Protocol):
    """Runs one cell."""

    def __call__(self, cell: Cell, plan: Plan) -> Measured:
        """What the cell measured under the plan."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """One table or figure of a paper, or a measurement of our own.

    Attributes:
        name: as ``lrsearch reproduce`` takes it.
        title: in a line.
        settings: everything beside a cell that changes what it measures.
        cells: the pieces, long ones first.
        measure: runs one cell; a module's function, so that worker processes can have it.
        report: tables and figures from all rows.
        by: columns that, with the seed, tell one run from another.
        method: of all runs, where no column "method" or "mode" says it.
    """

    name: str
    title: str
    settings: Callable[[Plan], Mapping[str, Any]]
    cells: Callable[[Plan], Sequence[Cell]]
    measure: Measure
    report: Callable[[Results, Plan], Report]
    by: Sequence[str] = ()
    method: str = ""


class Watcher(Protocol):
    """Is told how far a reproduction is."""

    def started(self, name: str, *, total: int, kept: int) -> None:
        """So many cells, of which some are finished already."""

    def finished(self, cell: Cell) -> None:
        """One more cell is kept."""


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What came of it.

    Attributes:
        report: tables, figures, text.
        results: all runs.
        folder: where everything was written.
        version: of the code that reports.
        versions: of the code that measured the cells; another one than ``version`` deserves a look.
        measured: cells finished by this call.
        missing: cells that are not finished, of which the report shows what there is; 0 unless time
            ran out.
    """

    report: Report
    results: Results
    folder: Path
    version: str
    versions: Sequence[str]
    measured: int
    missing: int


def run(
    reproduction: Reproduction,
    plan: Plan,
    *,
    out: Path,
    workers: int,
    fresh: bool = False,
    minutes: float = inf,
    watcher: Watcher | None = None,
    only: Callable[[Cell], bool] | None = None,
) -> Reproduced:
    """Measure what is missing, then report on everything that is there.

    Args:
        reproduction, plan: what, and how much of it.
        out: folder for cells, tables and figures.
        workers: processes.
        fresh: measure finished cells anew.
        minutes: begin no cell later than this; long ones stop and go on with the next call.
        watcher: is told about progress.
        only: which cells are measured by this call (``fresh`` or not); the report is on all.

    Raises:
        MissingDataError: if data are missing, a worker was killed, or there is nothing to show yet.
        InvalidArgumentError: if the folder cannot be written.
    """
    version, settings = code_version(), reproduction.settings(plan)
    store = CellStore(out / "cells", settings, version=version)
    work = replace(
        plan, checkpoints=out / "checkpoints", deadline=time.monotonic() + 60.0 * minutes
    )
    cells = list(reproduction.cells(plan))
    chosen = cells if only is None else [cell for cell in cells if only(cell)]
    if fresh:
        store.forget(chosen)
        for cell in chosen:
            _forget_checkpoint(work, settings, cell)
    found = [store.find(cell) for cell in chosen]
    missing = [
        cell
        for cell, kept in zip(chosen, found, strict=True)
        if kept is None or not kept[0].complete
    ]
    if watcher is not None:
        watcher.started(reproduction.name, total=len(chosen), kept=len(chosen) - len(missing))
    measured = 0
    for cell, result in run_cells(
        partial(reproduction.measure, plan=work), missing, workers=workers, seconds=60.0 * minutes
    ):
        store.keep(cell, result)
        if not result.complete:
            continue
        _forget_checkpoint(work, settings, cell)
        measured += 1
        if watcher is not None:
            watcher.finished(cell)
    # All from the store: what is reported is what was kept.
    kept = [(cell, *entry) for cell in cells if (entry := store.find(cell)) is not None]
    if not kept:
        limited = minutes < inf
        remedy = f"give it more than {minutes:g} minutes" if limited else "measure some of it first"
        raise MissingDataError(f"no cell of {reproduction.name} is finished: {remedy}")
    results = _joined([(cell, result) for cell, result, _ in kept])
    report = reproduction.report(results, plan)
    _write(report, results, out)
    return Reproduced(
        report=report,
        results=results,
        folder=out,
        version=version,
        versions=sorted({version for _, _, version in kept}),
        measured=measured,
        missing=len(cells) - sum(result.complete for _, result, _ in kept),
    )


def _forget_checkpoint(plan: Plan, settings: Mapping[str, Any], cell: Cell) -> None:
    if (checkpoint := plan.checkpoint(settings, cell)) is not None:
        checkpoint.discard()


def code_version() -> str:
    """The commit of this checkout, marked if files differ from it; else the package's version."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{described.stdout.strip()}"


def _joined(measured: Sequence[tuple[Cell, Measured]]) -> Results:
    rows: list[dict[str, Any]] = []
    curves: list[NDArray[np.float32]] = []
    epochs: list[dict[str, Any]] = []
    for cell, part in measured:
        for index, row in enumerate(part.rows):
            number: int | None = None
            if part.curves:
                number = len(curves)
                curves.append(part.curves[index])
            if part.history:
                epochs += [{RUN: len(rows), **cell, **epoch} for epoch in part.history[index]]
            rows.append({**cell, **row, CURVE: number})
    return Results(pd.DataFrame(rows), curves, pd.DataFrame(epochs))


def _write(report: Report, results: Results, out: Path) -> None:
    try:
        results.rows.to_parquet(out / "runs.parquet", index=False)
        for name, table in report.tables.items():
            table.to_parquet(out / f"{name}.parquet", index=False)
            table.to_csv(out / f"{name}.csv", index=False)
        for name, figure in report.figures.items():
            figure.savefig(out / f"{name}.png", dpi=120)
        (out / "report.txt").write_text(report.text + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError(f"--out: cannot write {str(out)!r}: {error.strerror}") from error
