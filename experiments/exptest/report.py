"""What the reports of Tables 1 and 3 share: panels of loss curves, one per rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import pandas as pd

from experiments.exptest.published import OWN
from experiments.harness.figures import draw_curves
from experiments.harness.reproduction import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS: Final = {
    "ExpTest (robust)": "#d1242f",
    "ExpTest (paper)": "#bf8700",
    "ExpTest (notebook)": "#8250df",
    "Adam": "#0969da",
    "SGD": "#57606a",
    "SGD w/ Mom.": "#1a7f37",
    "RMSprop": "#e16f24",
    "Adadelta": "#24292f",
}


def curves_figure(
    results: Results,
    factors: Sequence[float],
    *,
    window: int,
    ceiling: float,
    title: str,
) -> Figure:
    """One panel per rate; methods that choose their own rate stand in each.

    Args:
        results: rows with "method" and "rate".
        factors: rates in multiples of the bound.
        window: of the moving average, in steps.
        ceiling: top of the loss axis.
        title: above all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(factors), 4.6), layout="constrained")
    panels = figure.subplots(1, len(factors), sharey=True, squeeze=False)[0]
    rows = results.rows
    for axes, factor in zip(panels, factors, strict=True):
        here = rows[(rows["rate"] == f"{factor:g}") | (rows["rate"] == OWN)]
        groups = {
            str(method): results.curves_of(part)
            for method, part in here.groupby("method", sort=False)
        }
        draw_curves(axes, groups, window=window, ceiling=ceiling, colors=COLORS)
        axes.set_title(f"rate {factor:g} x bound", fontsize=10)
        axes.set_xlabel("gradient step")
        if axes.lines:  # all of them may lie above the ceiling
            axes.legend(fontsize=7)
    panels[0].set_ylabel("training loss")
    figure.suptitle(title, fontsize=11)
    return figure


def sorted_rows(keys: Sequence[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """ExpTest first, the rest as printed."""
    return sorted(keys, key=lambda key: not str(key[0]).startswith("ExpTest"))


def exptest_summary(table: pd.DataFrame, key: str) -> dict[str, float]:
    """Measured means of ExpTest's modes, as single numbers of the parent run."""
    modes = table[table["method"].str.startswith("ExpTest")]
    return {
        f"{key}/{method.removeprefix('ExpTest (').removesuffix(')')}": float(mean)
        for method, mean in zip(modes["method"], modes["measured"], strict=True)
    }
