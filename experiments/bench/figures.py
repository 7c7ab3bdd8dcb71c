"""The panel's figures: profiles, regret by shift, cost against regret, rates found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from experiments.bench.measures import ALL, FAILURE, LONGEST, SAME, TARGET, profile
from experiments.bench.panel import OWN, PEER, REPLAY, SEARCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DARK, _GREY, _LIGHT, _STRONG = "#24292f", "#d0d7de", "#eaeef2", "#cf222e"
_REDS: Final = (6, 7)  # of the palette: red is the reference's
_STYLES: Final = {SEARCH: "-", REPLAY: "--", PEER: ":"}
_MARKERS: Final = {SEARCH: "o", REPLAY: "s", PEER: "^"}


def profiles(cases: pd.DataFrame, kinds: Mapping[str, str], reference: str) -> Figure:
    """The share of cases solved within a cost; left the same optimizer's, right all methods."""
    drawn = _figure(13.0, 5.6)
    for axes, against in zip(drawn.subplots(1, 2, sharey=True), (SAME, ALL), strict=True):
        column = "points" if against == SAME else "points_all"
        mine = cases[cases[column].notna()]
        colors = _colors(kinds)
        for method, part in mine.groupby("method", sort=False):
            name = str(method)
            ratios, shares = profile(part, against)
            solved = np.isfinite(ratios) & (ratios <= LONGEST)
            costs = np.concatenate([[1.0], ratios[solved], [LONGEST]])
            # What is solved at one run's price already stands at the left edge.
            at_once = float((ratios <= 1.0).mean())
            heights = np.concatenate([[at_once], shares[solved], [solved.mean()]])
            axes.step(
                costs,
                heights,
                where="post",
                label=name,
                color=_STRONG if name == reference else colors[name],
                linestyle=_STYLES[kinds[name]],
                linewidth=2.4 if name == reference else 1.3,
                zorder=3 if name == reference else 2,
            )
        axes.set_xlim(1.0, LONGEST)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("cost, the search included [training runs]")
        axes.set_title(f"best rate of {'the ' if against == SAME else ''}{against}", fontsize=10)
        axes.grid(color=_LIGHT, linewidth=0.8)
    drawn.axes[0].set_ylabel(f"cases within {TARGET:g} point of the best fixed rate")
    handles, labels = drawn.axes[1].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return drawn


def regret_by_shift(cases: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """A panel a shift: each case's regret, a line a method; failures are red."""
    shifts = list(dict.fromkeys(cases["shift"]))
    columns = min(4, len(shifts))
    lines = ceil(len(shifts) / columns)
    drawn = _figure(2.2 + 3.0 * columns, lines * (1.0 + 0.2 * len(methods)))
    panels = drawn.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    place = {name: len(methods) - 1 - number for number, name in enumerate(methods)}
    jitter = np.random.default_rng(0)
    for axes, shift in zip(panels, shifts, strict=False):
        part = cases[cases["shift"] == shift]
        regret = part["points"].fillna(part["points_all"])
        heights = part["method"].map(place) + jitter.uniform(-0.25, 0.25, len(part))
        colors = np.where(part["failed"], _STRONG, "#0969da")
        axes.scatter(regret, heights, c=colors, s=14, alpha=0.7, linewidths=0, zorder=3)
        _regret_axis(axes, "x")
        axes.set_title(str(shift), fontsize=10)
        axes.set_yticks(list(place.values()), list(place), fontsize=8)
        axes.set_ylim(-0.6, len(methods) - 0.4)
        for edge in np.arange(len(methods) - 1) + 0.5:
            axes.axhline(edge, color=_LIGHT, linewidth=0.8)
    _lowest(panels, len(shifts), columns)
    drawn.supxlabel("regret [points]", fontsize=10)
    return drawn


def cost_and_regret(table: pd.DataFrame, kinds: Mapping[str, str], reference: str) -> Figure:
    """Each method's median regret and cost, with a line up to the 90th percentile of regret."""
    drawn = _figure(14.0, 6.0)
    colors = _colors(kinds)
    failed: dict[str, dict[str, str]] = {}
    for row in table.to_dict("records"):
        counts = failed.setdefault(row["method"], dict.fromkeys((SAME, ALL), "-"))
        counts[row["against"]] = f"{row['failures']}/{row['cases']}"
    for axes, against in zip(drawn.subplots(1, 2, sharey=True), (SAME, ALL), strict=True):
        for row in table[table["against"] == against].to_dict("records"):
            name = row["method"]
            color = _STRONG if name == reference else colors[name]
            axes.vlines(row["cost_mean"], row["median"], row["p90"], color=color, linewidth=1.2)
            axes.scatter(
                row["cost_mean"],
                row["median"],
                color=color,
                marker=_MARKERS[kinds[name]],
                s=70 if name == reference else 36,
                zorder=3,
                label=f"{name}: {', '.join(failed[name].values())}",
            )
        _regret_axis(axes, "y")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("mean cost, the search included [training runs]")
        axes.set_title(f"best rate of {'the ' if against == SAME else ''}{against}", fontsize=10)
    drawn.axes[0].set_ylabel("regret, median to 90th percentile [points]")
    handles, labels = drawn.axes[1].get_legend_handles_labels()
    title = "failed of cases: left, right"
    drawn.legend(handles, labels, title=title, loc="outside right upper", frameon=False, fontsize=8)
    return drawn


def rates(cases: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """A panel a method: the rate that it found against the best of the bank; failures are red."""
    known = cases[(cases["optimizer"] != OWN) & (cases["lr"] > 0.0)]
    shown = [name for name in methods if name in set(known["method"])]
    columns = min(5, max(1, len(shown)))
    lines = max(1, ceil(len(shown) / columns))
    drawn = _figure(0.6 + 2.5 * columns, 0.4 + 2.6 * lines)
    panels = drawn.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    span = (
        [known["best_lr"].min() / 10.0, known["best_lr"].max() * 10.0] if len(known) else [0.1, 1]
    )
    for axes, method in zip(panels, shown, strict=False):
        part = known[known["method"] == method]
        axes.plot(span, span, color=_GREY, linewidth=1.0)
        colors = np.where(part["failed"], _STRONG, "#0969da")
        axes.scatter(part["best_lr"], part["lr"], c=colors, s=14, alpha=0.7, linewidths=0, zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(method, fontsize=9)
    _lowest(panels, len(shown), columns)
    drawn.supxlabel("best rate of the bank", fontsize=10)
    drawn.supylabel("rate found", fontsize=10)
    return drawn


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _colors(kinds: Mapping[str, str]) -> dict[str, str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    palette = colormaps["tab20"]
    kept = [to_hex(palette(number)) for number in range(20) if number not in _REDS]
    return {name: kept[number % len(kept)] for number, name in enumerate(kinds)}


def _regret_axis(axes: Axes, which: str) -> None:
    """Straight within a point of the best rate, logarithmic beyond; failure dashed."""
    line = axes.axvline if which == "x" else axes.axhline
    (axes.set_xscale if which == "x" else axes.set_yscale)("symlog", linthresh=1.0)
    (axes.xaxis if which == "x" else axes.yaxis).set_major_formatter(lambda value, _: f"{value:g}")
    line(FAILURE, color=_DARK, linestyle="--", linewidth=0.8)
    line(0.0, color=_GREY, linewidth=0.8)


def _lowest(panels: Iterable[Axes], shown: int, columns: int) -> None:
    """Hide the panels that nothing is drawn in; the lowest of each column has its numbers."""
    for number, axes in enumerate(panels):
        axes.set_visible(number < shown)
        if number >= shown - columns:
            axes.tick_params(labelbottom=True)
