"""Figures over epochs, a panel for each network and set, as Figure 3 of [L]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS: Final = {
    "SGD": "#57606a",
    "Momentum": "#1a7f37",
    "RMSprop": "#e16f24",
    "Adam": "#0969da",
}
_LINES: Final = {"Adaptive": "-", "Baseline": "--", "Fixed": ":"}


def epochs_figure(epochs: pd.DataFrame, column: str, label: str, *, log: bool) -> Figure:
    """One line per run: colour by algorithm, stroke by policy.

    Args:
        epochs: rows with "run", "epoch", the settings of [L] Table 3, and the column.
        column: what is drawn.
        label: of it.
        log: whether its axis is logarithmic.
    """
    from matplotlib.figure import Figure

    groups = list(epochs.groupby(["dataset", "network"], sort=False))
    figure = Figure(figsize=(4.6 * max(len(groups), 1), 4.0), layout="constrained")
    panels = figure.subplots(1, max(len(groups), 1), squeeze=False)[0]
    for axes, ((dataset, network), here) in zip(panels, groups, strict=False):
        for (algorithm, policy, decay), runs in here.groupby(
            ["algorithm", "policy", "decay"], sort=False
        ):
            for number, (_, run) in enumerate(runs.groupby("run", sort=False)):
                axes.plot(
                    run["epoch"],
                    run[column],
                    _LINES[str(policy)],
                    color=_COLORS[str(algorithm)],
                    label=f"{algorithm}, {policy}, {decay}" if number == 0 else None,
                    linewidth=1.1,
                )
        axes.set_title(f"{network} on {dataset}", fontsize=10)
        axes.set_xlabel("epoch")
        axes.legend(fontsize=6)
        if log and here[column].nunique() > 1:  # one value alone makes no logarithmic axis
            axes.set_yscale("log")
    panels[0].set_ylabel(label)
    return figure
