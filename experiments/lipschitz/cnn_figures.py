"""Figures over epochs, as Figures 1 and 2 of [N]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS: Final = {
    "SGD": "#57606a",
    "Momentum": "#1a7f37",
    "Adam": "#0969da",
}


def rate_figure(
    epochs: pd.DataFrame, methods: Sequence[str], published: Mapping[str, Sequence[float]]
) -> Figure:
    """[N] Fig. 2: the rate of each epoch.

    Args:
        epochs: rows with "method", "seed", "epoch" and "lr".
        methods: a panel for each, since their rates lie far apart.
        published: rates of each epoch, in torch's form like ``epochs``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * len(methods), 3.6), layout="constrained")
    panels = figure.subplots(1, len(methods), squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        _draw(axes, epochs[epochs["method"] == method], "lr")
        if method in published:
            rates = published[method]
            axes.plot(
                range(1, len(rates) + 1), rates, ":", color="#d1242f", label="authors' notebook"
            )
        axes.legend(fontsize=7)
        axes.set_title(method, fontsize=10)
        axes.set_xlabel("epoch")
    panels[0].set_ylabel("learning rate")
    figure.suptitle("MNIST CNN: the rate 1 / L of each epoch (torch's)", fontsize=11)
    return figure


def accuracy_figure(epochs: pd.DataFrame) -> Figure:
    """[N] Fig. 1: accuracy and loss, on the way and on the test set.

    Args:
        epochs: rows with "method", "seed", "epoch", "accuracy", "test_loss", "train_accuracy" and
            "train_loss".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 7.0), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    titles = {
        "accuracy": "test accuracy, %",
        "train_accuracy": "training accuracy, % (augmented, with dropout)",
        "test_loss": "test loss",
        "train_loss": "training loss (augmented, with dropout)",
    }
    for axes, (column, title) in zip(panels.flat, titles.items(), strict=True):
        _draw(axes, epochs, column)
        axes.set_title(title, fontsize=10)
        if "loss" in column:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=max(float(epochs[column].min()), 90.0), top=100.0)
    for axes in panels[1]:
        axes.set_xlabel("epoch")
    panels[0][0].legend(fontsize=7, loc="lower right")
    figure.suptitle("MNIST CNN: rates of 1 / L (solid) and Keras' defaults (dashed)", fontsize=11)
    return figure


def _draw(axes: Axes, epochs: pd.DataFrame, column: str) -> None:
    """One line per run; the label at its first."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for method, runs in epochs.groupby("method", sort=False):
        family = str(method).split(maxsplit=1)[0]
        for number, (_, run) in enumerate(runs.groupby("seed", sort=True)):
            axes.plot(
                run["epoch"],
                run[column],
                "-o" if method == family else "--",
                color=_COLORS[family],
                label=str(method) if number == 0 else None,
                linewidth=1.2,
                markersize=3,
            )
