"""Results as text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lrsearch.engine.comparing import summary
from lrsearch.engine.recorded import Replay
from lrsearch.engine.result import SearchResult
from lrsearch.windows import WindowStats

# What a rejection means, in a clause.
_MEANINGS = {
    "diverged": "the loss is not finite, stays above ten times its start, or dwarfs it",
    "not exponential": "a decay explains the losses no better than a line",
    "rising": "the loss rises",
    "unstable": "the loss jumps above its start, or only falls back from its own jump",
    "flat": "neither a decay nor a steady fall shows, and patience is at its end",
}


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


def looks(replay: Replay) -> str:
    """One line per look of a replay."""
    rows = [
        {
            "window": window.index,
            "phase": window.phase,
            "steps": f"{window.start}-{window.last_step}",
            "lr": window.lr,
            "n_eff": window.n_effective,
            "F": window.f_statistic,
            "p": float(f"{window.pvalue:.2g}"),
            "level": replay.level(window),
            "slope t": window.t_statistic,
            "decision": f"would {window.decision}" if _is_decay(window) else window.decision,
            "reason": window.reason,
        }
        for window in replay.windows
    ]
    return plain(rows)


def replayed(replay: Replay) -> str:
    """The outcome of a replay in a sentence."""
    rate, window = f"learning rate {replay.lr:.4g}", replay.deciding
    if window is None:
        last = replay.windows[-1] if replay.windows else None
        if last is None:
            return (
                f"{rate}: no verdict, the first look needs {replay.needed} steps and the curve "
                f"has {replay.curve.steps[-1] - replay.curve.steps[0] + 1}"
            )
        return (
            f"{rate}: no verdict, the curve ends before the look after step {last.last_step} "
            f"({last.reason}, p = {last.pvalue:.2g})"
        )
    if replay.verdict == "rejected":
        first = next((w for w in replay.windows if w.decision == "accept"), None)
        before = "" if first is None else f"accepted at step {first.last_step}, then "
        return (
            f"{rate}: {before}rejected at step {window.last_step}: {_because(window)}; "
            f"the next rung is {window.lr * replay.settings.beta:.4g}"
        )
    decays = [w for w in replay.windows if _is_decay(w)]
    then = ""
    if decays:
        steps = ", ".join(str(w.last_step) for w in decays[:5])
        more = ", ..." if len(decays) > 5 else ""
        then = f"; it would decay at step {steps}{more} (plateau)"
    return (
        f"{rate}: accepted at step {window.last_step}: {window.reason}, {_evidence(window)}{then}"
    )


def _because(window: WindowStats) -> str:
    meaning = next((text for key, text in _MEANINGS.items() if window.reason.endswith(key)), "")
    if window.reason.endswith("diverged"):
        return f"{window.reason} ({meaning})"
    return f"{window.reason}, {_evidence(window)}" + (f" ({meaning})" if meaning else "")


def _evidence(window: WindowStats) -> str:
    if window.reason in ("rising", "steady fall"):
        return f"slope t = {window.t_statistic:.3g}"
    return f"p = {window.pvalue:.2g}"


def _is_decay(window: WindowStats) -> bool:
    return window.decision == "decay"


def _why(row: Any) -> str:
    reason = row["reason"] or ""
    pvalue = row["pvalue"]
    # One that gave way to another was not ended by a test of its own.
    tested = pd.notna(pvalue) and not str(reason).startswith("dominated")
    return f"{reason} (p = {pvalue:.2g})" if reason and tested else str(reason)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4g}"
    return "-" if value is None else str(value)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))
