"""Results as text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lrsearch.engine.comparing import summary
from lrsearch.engine.result import SearchResult


def plain(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under their keys, aligned."""
    if not rows:
        return "(none)"
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    numeric = [all(_is_number(row[column]) for row in rows) for column in columns]

    def line(texts: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return "  ".join(aligned).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(columns), rule, *map(line, cells)])


def ladder(result: SearchResult) -> str:
    """One line per trial: what was tried, what became of it, and why."""
    rows = [
        {
            "trial": int(row["number"]),
            "lr": float(row["lr"]),
            "state": row["state"].lower(),
            "steps": int(row["steps"]),
            "val loss": row["val_loss"],
            "why": _why(row),
        }
        for _, row in result.trials.iterrows()
    ]
    return f"{result.task}, {result.method}\n{plain(rows)}"


def answer(result: SearchResult) -> str:
    """The result in a sentence."""
    if result.lr != result.lr:
        return f"No rate was found ({result.stop_reason})."
    return (
        f"learning rate {result.lr:.4g}: test {result.metric} {result.value:.4f}, "
        f"train loss {result.train_loss:.4g}, {result.steps} gradient steps in all, "
        f"{result.seconds:.1f} s ({result.stop_reason})"
    )


def comparison(table: pd.DataFrame) -> str:
    """Means over seeds, one line per method."""
    metric = table.attrs["metric"]
    seeds = table["seed"].nunique()
    rows = [
        {
            "method": row["method"],
            "lr": float(row["lr"]),
            f"test {metric}": float(row["value"]),
            "sd": float(row["value_std"]),
            "best on test": float(row["oracle_value"]),
            "train loss": float(row["train_loss"]),
            "steps": round(row["steps"]),
            "of the most": f"{100.0 * row['share_of_steps']:.0f}%",
            "seconds": float(row["seconds"]),
        }
        for _, row in summary(table).iterrows()
    ]
    if seeds == 1:
        for row in rows:
            del row["sd"]
    return f"{table.attrs['task']}, {seeds} seed{'s' if seeds > 1 else ''}\n{plain(rows)}"


def _why(row: Any) -> str:
    reason = row["reason"] or ""
    pvalue = row["pvalue"]
    return f"{reason} (p = {pvalue:.2g})" if reason and pd.notna(pvalue) else str(reason)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4g}"
    return "-" if value is None else str(value)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))
