"""Tables and figures of [L]'s reproductions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from experiments.harness.reproduction import Results
from experiments.lipschitz.data import PARTS
from experiments.lipschitz.published import FIGURE1, GUESS, OURS, TABLE1, WHOLE
from lrsearch.cli.tables import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The paper's red and green, and one more beside the other.
COLORS: Final = {GUESS: "#d1242f", OURS: "#1a7f37", WHOLE: "#bf8700"}
OTHER: Final = "#0969da"
SPANNED: Final = 50.0  # losses that differ more are drawn on a logarithmic axis
CUT: Final = "\n(a quick cut: fewer rows, epochs and runs than published, so gaps mean nothing)"


def epochs_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per data set and rate: epochs printed, and the runs' median and range.

    Args:
        rows: one per run, with "dataset", "rate", "lr", "epochs" (NaN: not reached), "rises".
    """
    lines = []
    for (name, rate), part in rows.groupby(["dataset", "rate"], sort=False):
        row, epochs = TABLE1[str(name)], part["epochs"].astype(float)
        # What was not reached is later than all that was, so the median may be unknown.
        median = float(np.median(epochs.fillna(np.inf)))
        published = {GUESS: row.slow, OURS: row.fast}.get(str(rate))
        low, high = epochs.min(), epochs.max()
        lines.append(
            {
                "dataset": name,
                "rate": rate,
                "lr": float(part["lr"].mean()),
                "published": np.nan if published is None else float(published),
                "median": median if np.isfinite(median) else np.nan,
                "least": low,
                "most": high,
                "runs": len(part),
                "not_reached": int(epochs.isna().sum()),
                "at_once": int((epochs == 1).sum()),
                "rises": int(part["rises"].sum()),
            }
        )
    table = pd.DataFrame(lines)
    slow = table[table["rate"] == GUESS].set_index("dataset")["median"]
    table["speedup"] = slow.reindex(table["dataset"]).to_numpy() / table["median"]
    table["published_speedup"] = [
        TABLE1[name].slow / TABLE1[name].fast if rate == OURS else np.nan
        for name, rate in zip(table["dataset"], table["rate"], strict=True)
    ]
    return table


def epochs_text(table: pd.DataFrame, recomputed: pd.DataFrame, *, cut: bool) -> str:
    """Both tables for a terminal."""
    lines = [
        {
            "data": row["dataset"],
            "rate": row["rate"],
            "its value": f"{row['lr']:.5g}",
            "published": _count(row["published"]),
            "median": _count(row["median"]),
            "range": f"{_count(row['least'])} to {_count(row['most'])}",
            "": _where(row),
            "not reached": row["not_reached"] or "",
            "ratio published": _ratio(row["published_speedup"]),
            "measured": "" if row["rate"] == GUESS else _ratio(row["speedup"]),
            "rises": row["rises"],
        }
        for row in table.to_dict("records")
    ]
    parts = "\n".join(f"{name}: {what}" for name, what in PARTS.items() if name in TABLE1)
    return (
        "[L] Table 1: epochs until the loss is below T_L, from the same standard normal weights"
        f"{CUT if cut else ''}\n\n{plain(lines)}\n\n"
        "rises: points of all runs' curves that lie above the point before; ratio: epochs at 0.1 "
        f"over epochs at the rate\n{parts}\n\n{recomputed_text(recomputed)}"
    )


def _where(row: dict[Any, Any]) -> str:
    if row["published"] != row["published"] or row["least"] != row["least"]:
        return ""
    return "inside" if row["least"] <= row["published"] <= row["most"] else "outside"


def _count(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value == value else "-"


def _ratio(value: float) -> str:
    return f"{value:,.4g}" if value == value else ""


def recomputed_text(recomputed: pd.DataFrame) -> str:
    """Every printed 1/L, and what gives it."""
    lines = [
        {
            "data": row["dataset"],
            "printed 1/L": f"{row['published']:.8g}",
            "computed": f"{row['computed']:.8g}",
            "ratio": f"{row['ratio']:.5f}",
            "how": row["how"],
            "verdict": row["verdict"],
        }
        for row in recomputed.to_dict("records")
    ]
    return f"1/L recomputed\n\n{plain(lines)}"


def curves_figure(results: Results, *, log_epochs: bool = False) -> Figure:
    """One panel per data set: the runs' median loss by epoch, with their range as a band.

    Args:
        results: rows with "dataset", "rate", "epochs_per_point", and "threshold" if there is one.
        log_epochs: epochs on a logarithmic axis.
    """
    from matplotlib.figure import Figure

    rows = results.rows
    names = list(dict.fromkeys(rows["dataset"]))
    if "accuracy" in rows:  # of runs that were tested twice, the whole
        rows = rows[rows["epochs"] == rows.groupby("dataset")["epochs"].transform("max")]
    across = min(len(names), 4)
    down = -(-len(names) // across)
    figure = Figure(figsize=(4.0 * across, 3.4 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        here = rows[rows["dataset"] == name]
        for rate, part in here.groupby("rate", sort=False):
            curves = np.stack([np.asarray(c, np.float64) for c in results.curves_of(part)])
            epochs = 1 + np.arange(curves.shape[1]) * int(part["epochs_per_point"].iloc[0])
            color = COLORS.get(str(rate), OTHER)
            axes.plot(epochs, np.median(curves, axis=0), color=color, label=rate, linewidth=1.2)
            low, high = curves.min(axis=0), curves.max(axis=0)
            axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
        if "threshold" in here:
            axes.axhline(here["threshold"].iloc[0], color="#57606a", linestyle=":", linewidth=1.0)
            if name == "california":
                axes.plot(*zip(*FIGURE1.items(), strict=True), "k.", label="[L] Fig. 1")
        if log_epochs:
            axes.set_xscale("log")
        bottom, top = axes.dataLim.intervaly
        if 0.0 < bottom < top / SPANNED:
            axes.set_yscale("log")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch")
        axes.legend(fontsize=7)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("training loss")
    return figure


def accuracy_figure(rows: pd.DataFrame) -> Figure:
    """[L] Figure 2: MNIST's accuracy on train and test by epoch, mean and range of the runs.

    Args:
        rows: with "dataset", "rate", "accuracy_after_E" and "train_accuracy_after_E" of epochs E.
    """
    from matplotlib.figure import Figure

    here = rows[rows["dataset"] == "MNIST"]
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (prefix, title) in zip(
        panels, (("train_accuracy", "training images"), ("accuracy", "test images")), strict=True
    ):
        columns = [
            column
            for column in here
            if str(column).startswith(f"{prefix}_after_") and here[column].notna().all()
        ]
        epochs = [int(str(column).rsplit("_", 1)[1]) for column in columns]
        for rate, part in here.groupby("rate", sort=False):
            color, values = COLORS.get(str(rate), OTHER), part[columns]
            axes.plot(epochs, values.mean(), color=color, marker=".", label=rate)
            axes.fill_between(
                epochs, values.min(), values.max(), color=color, alpha=0.2, linewidth=0
            )
        axes.set_xscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.legend(fontsize=8)
    panels[0].set_ylabel("accuracy in percent")
    return figure
