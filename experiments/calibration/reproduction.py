"""Size and power of the tests, window by window and over whole runs, as a reproduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from experiments.calibration.measure import NOTEBOOK_LONGEST, REPLICATES, cells, measure
from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from lrsearch.cli.tables import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA: Final = 0.05
POWER: Final = 0.95
SHORTEST: Final = 50  # what is promised holds from here on
_TITLES: Final = {
    "no decay": "Accepted although no decay",
    "decay": "Accepted, a decay whose drop is ten deviations of the noise",
    "between": "Accepted, neither by definition",
    "search": "Whole searches that accept a rate (three looks and a steady fall)",
    "watch": "Whole watches that call a plateau",
}
_COLORS: Final = {"robust": "#d1242f", "plain": "#bf8700", "notebook": "#8250df"}


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    return {"alpha": ALPHA, "replicates": REPLICATES[plan.scale]}


def planned(plan: Plan) -> Sequence[Cell]:
    """The cells of a scale, long windows first; every seed draws its own windows."""
    ordered = sorted(cells(plan.scale), key=lambda cell: -int(cell["n"]))
    return [{**cell, SEED: seed} for seed in plan.seed_range(full=1, quick=1) for cell in ordered]


def measured(cell: Cell, plan: Plan) -> Measured:
    """One test on one shape at one length."""
    part = {key: value for key, value in cell.items() if key != SEED}
    row = measure(part, replicates=REPLICATES[plan.scale], seed=int(cell[SEED]), alpha=ALPHA)
    return Measured([row])


def report(results: Results, plan: Plan) -> Report:
    """A table per group, what is promised and missed, and the figures of size and power."""
    rows = results.rows.drop(columns=["curve"])
    parts = []
    for group, title in _TITLES.items():
        part = rows[rows["group"] == group]
        if len(part):
            lines = _runs(part) if group in ("search", "watch") else _windows(part)
            parts.append(f"{title}\n\n{plain(lines)}")
    loud, weak = exceeded(rows), powerless(rows)
    parts.append(
        f"alpha = {ALPHA}, {REPLICATES[plan.scale]} replicates a cell, 95 % Wilson intervals; the "
        f"notebooks' test up to N = {NOTEBOOK_LONGEST}\n"
        f"robust above alpha beyond the interval, no decay, N >= {SHORTEST}: {_names(loud)}\n"
        f"robust below power {POWER} on a decay, N >= {SHORTEST}: {_names(weak)}"
    )
    figures = {"size": _figure(rows, "no decay"), "power": _figure(rows, "decay")}
    summary = {"cells_above_alpha": float(len(loud)), "cells_below_power": float(len(weak))}
    return Report("\n\n\n".join(parts), {"calibration": rows}, figures, summary)


def exceeded(rows: pd.DataFrame) -> pd.DataFrame:
    """Cells of non-decays in which the robust test's interval lies above alpha."""
    still = rows["group"].eq("no decay") & rows["test"].eq("robust")
    # Among searches, those of curves that hold still.
    still |= rows["group"].eq("search") & rows["shape"].str.startswith(("flat", "one loud"))
    still |= rows["group"].eq("watch") & rows["shape"].str.startswith("falls")
    return rows[still & (rows["n"] >= SHORTEST) & (rows["low"] > ALPHA)]


def powerless(rows: pd.DataFrame) -> pd.DataFrame:
    """Cells of decays in which the robust test's interval lies below the promised power."""
    known = rows["group"].eq("decay") & rows["test"].eq("robust") & (rows["n"] >= SHORTEST)
    return rows[known & (rows["high"] < POWER)]


def _names(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "none"
    return "; ".join(
        f"{shape} at {n}: {share:.3f}" + (f" (oracle {oracle:.3f})" if oracle == oracle else "")
        for shape, n, share, oracle in zip(
            rows["shape"], rows["n"], rows["share"], rows["oracle"], strict=True
        )
    )


def _share(row: Mapping[Any, Any]) -> str:
    return f"{row['share']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _windows(part: pd.DataFrame) -> list[dict[str, object]]:
    """One line a shape and length, one column a test."""
    lines: list[dict[str, object]] = []
    for (shape, n), cells_ in part.groupby(["shape", "n"], sort=False):
        line: dict[str, object] = {"shape": shape, "N": n}
        by_test = {row["test"]: row for row in cells_.to_dict("records")}
        for test in ("robust", "plain", "notebook"):
            line[test] = _share(by_test[test]) if test in by_test else ""
        oracle = float(cells_["oracle"].iloc[0])
        if oracle == oracle:
            line["oracle"] = f"{oracle:.3f}"
        lines.append(line)
    order = {shape: i for i, shape in enumerate(_order(part))}
    return sorted(lines, key=lambda line: (order[str(line["shape"])], int(str(line["N"]))))


def _runs(part: pd.DataFrame) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = [
        {
            "shape": row["shape"],
            "first window": row["n"],
            "yes": _share(row),
            "median steps": row["median_steps"],
            "90 % by": row["p90_steps"],
        }
        for row in part.to_dict("records")
    ]
    order = {shape: i for i, shape in enumerate(_order(part))}
    return sorted(
        lines, key=lambda line: (order[str(line["shape"])], int(str(line["first window"])))
    )


def _order(part: pd.DataFrame) -> list[str]:
    """Shapes as they were planned."""
    return list(dict.fromkeys(str(shape) for shape in part["shape"]))


def _figure(rows: pd.DataFrame, group: str) -> Figure:
    """One panel a shape: the share that each test accepts over N, with its interval."""
    from matplotlib.figure import Figure

    part = rows[rows["group"] == group]
    shapes = _order(part)
    across = 5
    down = max(1, -(-len(shapes) // across))
    figure = Figure(figsize=(3.1 * across, 2.3 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    for axes, shape in zip(panels, shapes, strict=False):
        for test, color in _COLORS.items():
            line = part[(part["shape"] == shape) & (part["test"] == test)].sort_values("n")
            below = np.clip(line["share"] - line["low"], 0.0, None)
            above = np.clip(line["high"] - line["share"], 0.0, None)
            axes.errorbar(
                line["n"], line["share"], yerr=[below, above], color=color, label=test,
                marker="o", markersize=3, linewidth=1.0, capsize=2,
            )  # fmt: skip
        if group == "decay":
            known = part[(part["shape"] == shape) & (part["test"] == "robust")].sort_values("n")
            axes.plot(
                known["n"], known["oracle"], "--", color="#57606a", linewidth=1, label="oracle"
            )
            axes.set_ylim(0.0, 1.05)
        else:
            axes.axhline(ALPHA, color="#57606a", linestyle="--", linewidth=1)
            axes.set_ylim(0.0, max(0.12, 1.05 * float(part[part["shape"] == shape]["high"].max())))
        axes.set_xscale("log")
        axes.set_title(shape, fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in panels[len(shapes) :]:
        axes.set_axis_off()
    panels[0].legend(fontsize=7)
    figure.supxlabel("losses in the window, N", fontsize=9)
    figure.supylabel("share accepted", fontsize=9)
    figure.suptitle(_TITLES[group], fontsize=11)
    return figure


REPRODUCTION = Reproduction(
    name="calibration",
    title="size and power of the notebooks', the plain and the robust test; searches; plateaus",
    settings=settings,
    cells=planned,
    measure=measured,
    report=report,
)
