"""Tables over a panel's cases: a line a method, with intervals; failures by shift; paired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from experiments.bench.measures import ALL, FAILURE, SAME, TASK, Array, profile, profile_area
from experiments.bench.panel import OWN
from experiments.harness.reproduction import SEED
from experiments.harness.resampling import bootstrap_interval, holm, paired_interval

_DRAWS: Final = 1000


def summary(runs: pd.DataFrame, cases: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """A line a method, against the best rate of the same optimizer and of all of them.

    Methods with an update of their own stand in the second part alone. Intervals (95 %) are
    bootstrapped over tasks, each with all of its seeds and optimizers.
    """
    lines = []
    for against in (SAME, ALL):
        suffix = "" if against == SAME else "_all"
        for method in methods:
            mine = cases[(cases["method"] == method) & cases[f"points{suffix}"].notna()]
            if not len(mine):
                continue
            part = runs[runs["method"] == method]
            part = part[part[f"points{suffix}"].notna()]
            values = cube(part.assign(value=part[f"points{suffix}"])).mean(axis=1, keepdims=True)
            severe = cube(part.assign(value=part[f"points{suffix}"].mask(part["failed"], np.inf)))
            severe = severe.mean(axis=1, keepdims=True)
            median = bootstrap_interval(values, _median, draws=_DRAWS, whole_tasks=True)
            share = bootstrap_interval(severe, _failures, draws=_DRAWS, whole_tasks=True)
            regret = mine[f"points{suffix}"]
            lines.append(
                {
                    "against": against,
                    "method": method,
                    "cases": len(mine),
                    "failures": int(mine[f"failed{suffix}"].sum()),
                    "failed_low": share[0],
                    "failed_high": share[1],
                    "median": regret.median(),
                    "median_low": median[0],
                    "median_high": median[1],
                    "p90": regret.quantile(0.9),
                    "worst": regret.max(),
                    "train_median": mine["train_regret"].median(),
                    "cost_median": mine["cost"].median(),
                    "cost_mean": mine["cost"].mean(),
                    "profile_area": profile_area(profile(mine, against)[0]),
                    "worth": mine["worth"].fillna(0.0).median(),
                    "lr_error": mine["lr_error"].median(),
                    "seconds": mine["seconds"].mean(),
                }
            )
    return pd.DataFrame(lines)


def cube(runs: pd.DataFrame) -> Array:
    """The column "value", shape (tasks, seeds, optimizers); NaN for what was not run."""
    wide = runs.pivot(index=[*TASK, SEED], columns="optimizer", values="value")
    tasks = list(dict.fromkeys(key[: len(TASK)] for key in wide.index))
    seeds = sorted({key[-1] for key in wide.index})
    whole = wide.reindex([(*task, seed) for task in tasks for seed in seeds]).to_numpy(np.float64)
    return whole.reshape(len(tasks), len(seeds), -1)


def _median(values: Array) -> float:
    return float(np.median(values[~np.isnan(values)]))


def _failures(values: Array) -> float:
    return float((values > FAILURE).sum() / np.count_nonzero(~np.isnan(values)))


def by_shift(cases: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Failures of each method under each shift, of how many cases."""
    found = (
        cases.groupby(["method", "shift"], sort=False)["failed"]
        .agg(failures="sum", cases="size")
        .reset_index()
    )
    found["failures"] = found["failures"].astype(int)
    order = {name: number for number, name in enumerate(methods)}
    return found.sort_values("method", key=lambda names: names.map(order), kind="stable")


def paired(runs: pd.DataFrame, methods: Sequence[str], reference: str) -> pd.DataFrame:
    """Regret of each method less the reference's on the same task, seed and optimizer, in points.

    A method with its own update stands beside the reference with each optimizer. Positive: worse
    than the reference. Wilcoxon's p-values, of the tasks' means, are also given as Holm adjusts
    them.
    """
    theirs = runs[runs["method"] == reference].assign(value=lambda part: part["points_all"])
    lines = []
    for method in methods:
        keys = [*TASK, SEED]
        mine = runs[runs["method"] == method]
        if method == reference or not len(mine):
            continue
        if (mine["optimizer"] != OWN).all() and (theirs["optimizer"] != OWN).all():
            keys.append("optimizer")
        columns = [*keys, "points_all"]
        both = theirs.merge(mine[columns], on=keys, suffixes=("", "_mine"))
        if not len(both):
            continue
        difference = both.assign(value=both["points_all_mine"] - both["points_all"])
        found = paired_interval(cube(difference), draws=_DRAWS, per_task=True)
        lines.append(
            {
                "method": method,
                "against": reference,
                "runs": len(both),
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "pvalue": found.pvalue,
            }
        )
    table = pd.DataFrame(lines)
    if len(table):
        table["holm"] = holm(table["pvalue"].to_numpy(np.float64))
    return table
