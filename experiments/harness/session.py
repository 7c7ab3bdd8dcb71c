"""One call of ``lrsearch reproduce``: run, report, record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from experiments.catalogue import find
from experiments.harness.cells import SEED
from experiments.harness.choosing import chosen_cells, decided
from experiments.harness.reproduction import (
    CURVE,
    Plan,
    Reproduced,
    Reproduction,
    Watcher,
    run,
)
from lrsearch.engine.workers.placement import cores
from lrsearch.tracking import RunTracker, find_tracker

_POINTS: Final = 300  # losses of a run in the tracker; all are in the cells' files


@dataclass(frozen=True, slots=True)
class Session:
    """What ``reproduce`` gives back.

    Attributes:
        reproduced: tables, figures, text, folder.
        run_id, tracking_uri: of the parent run; "" if nothing was recorded.
    """

    reproduced: Reproduced
    run_id: str
    tracking_uri: str


def reproduce(
    name: str,
    plan: Plan,
    *,
    out: Path | None = None,
    workers: int | None = None,
    fresh: bool = False,
    minutes: float = inf,
    merge: Sequence[Path] = (),
    tracker: str = "mlflow",
    tracking_uri: str | None = None,
    watcher: Watcher | None = None,
) -> Session:
    """Run a reproduction, or go on with it, and record it.

    Args:
        name: of the catalogue.
        plan: scale, seeds, data, rows, epochs, options.
        out: folder; default ``reproductions/NAME/SCALE`` here.
        workers: processes; default the reproduction's own number, else one per core.
        fresh: measure finished cells anew.
        minutes: begin no cell later than this, and report on what is there.
        merge: folders of other calls whose finished cells are taken first.
        tracker: "mlflow", or "none" to record nothing.
        tracking_uri: store of the tracker.
        watcher: is told about progress.

    Raises:
        InvalidArgumentError: on an unknown name, row or option, or a folder that cannot be used.
        MissingDataError: if data are missing, or a worker was killed.
    """
    reproduction = find(name)
    plan = decided(reproduction, plan)
    chosen_cells(reproduction, plan)  # refuses rows that it has not, before anything is recorded
    folder = out or Path("reproductions", name, plan.scale)
    parent: RunTracker | None = None
    if tracker != "none":
        # First of all: a store that cannot be opened is better known before the work.
        parent = find_tracker(tracker)(
            experiment=f"reproduce {name}",
            name=f"{name} {plan.scale}",
            tracking_uri=tracking_uri,
            tags={"lrsearch.reproduction": name, "lrsearch.scale": plan.scale},
        )
    try:
        reproduced = run(
            reproduction,
            plan,
            out=folder,
            workers=workers or reproduction.workers or cores(),
            fresh=fresh,
            minutes=minutes,
            merge=merge,
            watcher=watcher,
        )
        if parent is not None:
            record(reproduction, reproduced, plan, parent)
    except BaseException:
        if parent is not None:
            parent.finish("failed")
        raise
    if parent is None:
        return Session(reproduced, "", "")
    parent.finish("complete")
    return Session(reproduced, parent.run_id, parent.tracking_uri)


def record(
    reproduction: Reproduction, reproduced: Reproduced, plan: Plan, parent: RunTracker
) -> None:
    """Tables, figures and single numbers on the parent; a nested run for each measured run."""
    report, rows = reproduced.report, reproduced.results.rows
    settings = {**reproduction.settings(plan), "scale": plan.scale}
    if SEED in rows:
        settings["seeds"] = ",".join(str(seed) for seed in sorted(set(rows[SEED])))
    parent.log_params(settings)
    parent.set_tags({"lrsearch.versions": ", ".join(reproduced.versions)})
    parent.log_metrics(report.summary, 0)
    for name, table in report.tables.items():
        parent.log_table(name, table)
    parent.log_table("runs", rows.drop(columns=[CURVE]))
    for name, figure in report.figures.items():
        parent.log_figure(name, figure)
    results = reproduced.results
    for number, row in zip(rows.index, rows.to_dict("records"), strict=True):
        if pd.notna(row[CURVE]):
            curve = results.curves[int(row[CURVE])]
            _record_run(parent, reproduction, row, curve, results.epochs_of(number))


def _record_run(
    parent: RunTracker,
    reproduction: Reproduction,
    row: Mapping[Any, Any],
    curve: np.ndarray[Any, Any],
    epochs: pd.DataFrame,
) -> None:
    settings = (*reproduction.by, SEED)
    texts = {
        str(key): value
        for key, value in row.items()
        if isinstance(value, str) or ((key in settings or key == "lr") and pd.notna(value))
    }
    values = {
        _metric(str(key)): float(value)
        for key, value in row.items()
        if key not in (CURVE, "lr", *settings) and not isinstance(value, str) and pd.notna(value)
    }
    named = [
        f"{row[key]}" if isinstance(row[key], str) else f"{key} {row[key]}" for key in settings
    ]
    method = str(row.get("method", row.get("mode", reproduction.method)))
    child = parent.child(" ".join(named), tags={"lrsearch.method": method})
    child.log_params(texts)
    last = len(curve) - 1
    if pd.notna(row.get("lr")):  # else the optimizer's own
        child.log_metrics({"train/lr": float(row["lr"])}, 0)
        values.setdefault("train/lr", float(row["lr"]))
    child.log_metrics(values, last)
    for step in np.unique(np.linspace(0, last, min(_POINTS, len(curve))).astype(int)):
        child.log_metrics({"train/loss": float(curve[step])}, int(step))
    if len(epochs):
        child.log_table("epochs", epochs)
    diverged = not np.isfinite(curve[-1])
    child.finish("failed" if diverged else "complete")


def _metric(column: str) -> str:
    """Name in the tracker: measured on the test split, or of the training."""
    if column in ("accuracy", "test_mse", "test_mse_best"):
        return f"test/{column.removeprefix('test_')}"
    return {"train_loss": "train/loss_final", "final_lr": "train/lr"}.get(column, column)
