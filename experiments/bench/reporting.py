"""What a panel shows: tables, texts and figures of all that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd

from experiments.bench import figures
from experiments.bench.measures import ALL, CASE, FAILURE, SAME, TARGET, Banks, per_case, per_run
from experiments.bench.panel import BANK, Panel
from experiments.bench.summaries import by_shift, paired, summary
from experiments.harness.reproduction import CURVE, SEED, Report
from lrsearch.cli.tables import plain
from lrsearch.engine.result import records
from lrsearch.errors import MissingDataError

_TITLES: Final = {
    SAME: "Against the best fixed rate of the same optimizer",
    ALL: "Against the best fixed rate over all optimizers (methods with an update of their own "
    "stand here alone)",
}


def panel_report(
    panel: Panel, rows: pd.DataFrame, banks: Banks, *, left_out: Sequence[str] = ()
) -> Report:
    """Tables, figures and text.

    Args:
        panel: for the order of the methods and the reference.
        rows: of all methods, replayed ones too.
        banks: of the cases.
        left_out: what could not be measured, and why.

    Raises:
        MissingDataError: if no method has a run on a task with a bank.
    """
    methods = [name for name, method in panel.methods.items() if method.kind != BANK]
    runs = per_run(rows[rows["kind"] != BANK], banks)
    if not len(runs):
        raise MissingDataError("no method has a run on a task whose bank is finished: measure more")
    cases = per_case(runs, banks)
    there = [name for name in methods if name in set(runs["method"])]
    table = summary(runs, cases, there)
    shifts = by_shift(cases, there)
    against = paired(runs, there, panel.reference)
    broken = runs.loc[runs["failed"], [*CASE, "method", SEED, "reason"]].reset_index(drop=True)
    parts = [_head(cases, runs)]
    parts += [
        f"{title}:\n\n{plain(_summary_lines(part))}"
        for key, title in _TITLES.items()
        if len(part := table[table["against"] == key])
    ]
    parts.append(f"Failures by shift (of cases):\n\n{plain(_shift_lines(shifts))}")
    if len(against):
        parts.append(
            f"Regret less that of {panel.reference}, in points, paired over tasks, seeds and "
            "optimizers; above 0\nis worse (95 %, bootstrap over tasks, then seeds; Wilcoxon's p "
            f"of the tasks' means, and as Holm adjusts it):\n\n{plain(_paired_lines(against))}"
        )
    if len(broken):
        parts.append(f"Runs without a finite answer:\n\n{plain(_broken_lines(broken))}")
    if left_out:
        parts.append("Left out: " + "; ".join(left_out))
    kinds = {name: method.kind for name, method in panel.methods.items()}
    return Report(
        "\n\n".join(parts),
        {
            "summary": table,
            "cases": cases,
            "shifts": shifts,
            "paired": against,
            "methods": runs.drop(columns=[CURVE, "guess"], errors="ignore"),
            "broken": broken,
        },
        figures={
            "profile": figures.profiles(cases, kinds, panel.reference),
            "regret_by_shift": figures.regret_by_shift(cases, there),
            "cost_and_regret": figures.cost_and_regret(table, kinds, panel.reference),
            "rates": figures.rates(cases, there),
        },
    )


def _head(cases: pd.DataFrame, runs: pd.DataFrame) -> str:
    tasks = cases[["base", "shift"]].drop_duplicates()
    return (
        f"{tasks['base'].nunique()} base tasks, {len(tasks)} with their shifts, "
        f"{runs[SEED].nunique()} seeds. Regret on test in points of accuracy (3 % of the best "
        f"squared error count as a\npoint), to the fixed rate that validation chooses from the "
        f"bank; failed: mean regret above {FAILURE:g}, or no finite answer.\nCost: gradient steps, "
        f"the search's included, in training runs. Area: share of cases within {TARGET:g} point at "
        "a cost, from 1 to 4 runs.\nWorth: random rates of the bank whose expected best is as good "
        "(median; inf: none are)."
    )


def _interval(low: float, high: float, digits: int = 2) -> str:
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def _summary_lines(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "method": row["method"],
            "failed": f"{row['failures']}/{row['cases']}",
            "share": _interval(row["failed_low"], row["failed_high"]),
            "median": f"{row['median']:.2f}",
            "95 %": _interval(row["median_low"], row["median_high"]),
            "90th": f"{row['p90']:.1f}",
            "worst": f"{row['worst']:.1f}",
            "train": f"{row['train_median']:+.2f}",
            "cost": f"{row['cost_median']:.2f}",
            "mean": f"{row['cost_mean']:.2f}",
            "area": f"{row['profile_area']:.2f}",
            "worth": f"{row['worth']:.0f}",
            "|log lr|": "-" if pd.isna(row["lr_error"]) else f"{row['lr_error']:.2f}",
            "s": f"{row['seconds']:.2f}",
        }
        for row in table.to_dict("records")
    ]


def _shift_lines(table: pd.DataFrame) -> list[dict[str, Any]]:
    texts = table["failures"].astype(str) + "/" + table["cases"].astype(str)
    wide = table.assign(text=texts.where(table["failures"] > 0, ".")).pivot(
        index="method", columns="shift", values="text"
    )
    methods, shifts = (list(dict.fromkeys(table[name])) for name in ("method", "shift"))
    ordered = wide.loc[methods, shifts].fillna("-")
    return [
        {"method": name, **{str(key): value for key, value in row.items()}}
        for name, row in zip(methods, ordered.to_dict("records"), strict=True)
    ]


def _paired_lines(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "method": row["method"],
            "runs": row["runs"],
            "mean": f"{row['mean']:+.2f}",
            "95 %": _interval(row["low"], row["high"]),
            "p": f"{row['pvalue']:.2g}",
            "Holm": f"{row['holm']:.2g}",
        }
        for row in table.to_dict("records")
    ]


def _broken_lines(table: pd.DataFrame) -> list[dict[str, Any]]:
    counted = table.groupby(["method", "reason"], sort=False).size().reset_index(name="runs")
    counted["reason"] = counted["reason"].str.slice(0, 90)
    return records(counted)
