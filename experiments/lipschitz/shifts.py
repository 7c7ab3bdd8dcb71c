"""Lipschitz rates on shifted digits, by themselves and under ExpTest's test.

Four optimizers, each with 1 / L as the papers have it (*paper*) and as a bound for any output
(*plain*), with ExpTest's ladder from the latter of the first batch (*guarded*) and from its own
bound (*exptest*), as ``lrsearch.search`` gives them: value of the trial that the study chose, steps
of all its trials. The regret is to the best fixed rate of the same optimizer, on the same batches
from the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch

from experiments.banks import Bank
from experiments.exptest.data import as_percent
from experiments.exptest.training import FixedRates, minibatches, train
from experiments.harness.cells import SEED, Cell, Measured, Row
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from experiments.shifted_digits import (
    FAILURE,
    GRID,
    OWN,
    QUICK_STEPS,
    STEPS,
    TASKS,
    Shift,
    network,
    paired_difference,
    task_data,
    with_regret,
)
from lrsearch import TaskData, TrainingTask, search
from lrsearch.cli.tables import plain
from lrsearch.engine.result import SearchResult, records
from lrsearch.training.loop import steps_per_epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER, PLAIN, GUARDED, EXPTEST = "paper", "plain", "guarded", "exptest"
OPTIMIZERS: Final = {
    "sgd": "SGD",
    "momentum": "SGD w/ Mom.",
    "rmsprop": "RMSprop",
    "adam": "Adam",
}
# What of each method's search differs; all but the first have mode "robust".
SEARCHES: Final[dict[str, dict[str, Any]]] = {
    PAPER: {"method": "lipschitz", "mode": "paper"},
    PLAIN: {"method": "lipschitz"},
    # What ExpTest's test is worth by itself: no race, no annealing, no validation.
    GUARDED: {"method": "lipschitz", "start": "lipschitz", "anneal": 0.0, "guard": False},
    EXPTEST: {"method": "exptest", "start": "bound", "anneal": 0.0, "guard": False},
}
# Those on which plain rates were found to fail first; the others follow.
SIX: Final = (
    "logistic, raw pixels",
    "logistic, inputs x 0.01",
    "mlp, raw pixels",
    "six hidden layers",
    "mlp, batch 256",
    "mlp, 30 % label noise",
)
ALL: Final = {**TASKS, "logistic, inputs x 0.01": Shift(hidden=(), scale=0.01)}
GUESSING: Final = 10.0  # percent: what a search without an answer gets
_COLORS: Final = {
    PAPER: "#d1242f",
    PLAIN: "#bf8700",
    GUARDED: "#0969da",
    EXPTEST: "#57606a",
}


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    return {"steps": QUICK_STEPS // 2 if plan.quick else STEPS}


def tasks_of(plan: Plan) -> Sequence[str]:
    """Tasks by name; the quick cut has two."""
    return ("logistic, inputs x 0.01", "mlp, raw pixels") if plan.quick else tuple(ALL)


def cells(plan: Plan) -> Sequence[Cell]:
    """One task, optimizer and seed each; seed by seed, so that a run cut short is balanced."""
    return [
        {"task": task, "optimizer": optimizer, SEED: seed}
        for seed in plan.seed_range(full=3, quick=1)
        for task in tasks_of(plan)
        for optimizer in OPTIMIZERS
    ]


def measure(cell: Cell, plan: Plan) -> Measured:
    """All searches, and all fixed rates side by side."""
    shift, seed, optimizer = ALL[cell["task"]], int(cell[SEED]), str(cell["optimizer"])
    data = task_data(shift, seed)
    task = _task(data, shift, optimizer, int(settings(plan)["steps"]))
    rows: list[Row] = []
    for method, options in SEARCHES.items():
        found = search(task, seed=seed, tracker="none", **options)
        rows.append({"method": method, "rate": OWN, **_row(found)})
    steps = steps_per_epoch(task, data) * task.epochs
    torch.manual_seed(seed)
    bank = Bank([network(data, shift)] * len(GRID), loss="cross_entropy")
    runs = [(rate, bank.parameters(i)) for i, rate in enumerate(GRID)]
    batches = minibatches(data.train, batch_size=shift.batch_size, seed=seed, steps=steps)
    train(bank, [FixedRates(OPTIMIZERS[optimizer], runs)], batches, steps=steps)
    accuracy = as_percent(bank.accuracy(data.test.inputs, data.test.targets))
    rows += [
        {"method": "fixed", "rate": f"{rate:.3g}", "lr": rate, "accuracy": percent, "steps": steps}
        for rate, percent in zip(GRID, accuracy, strict=True)
    ]
    return Measured(rows)


def _task(data: TaskData, shift: Shift, optimizer: str, steps: int) -> TrainingTask:
    task = TrainingTask(
        "digits",
        data=lambda seed: data,
        model=lambda given: network(given, shift),
        batch_size=shift.batch_size,
        optimizer=optimizer,
    )
    # Whole epochs: the renewals of 1 / L come at their ends.
    return replace(task, epochs=max(1, round(steps / steps_per_epoch(task, data))))


def _row(found: SearchResult) -> Row:
    answered = found.lr == found.lr
    chosen = found.trials[found.trials["state"] == "COMPLETE"]
    return {
        "lr": found.lr if answered else None,
        "final_lr": float(chosen["lr_final"].iloc[-1]) if answered else None,
        "accuracy": 100.0 * found.value if answered else GUESSING,
        "answered": int(answered),
        "trials": len(found.trials),
        "steps": found.steps,
        "note": found.start_note,
    }


def report(results: Results, plan: Plan) -> Report:
    """Regrets and failures by optimizer and method; guarded less plain, paired."""
    regrets = with_regret(results.rows, by=("optimizer", "task"))
    table = (
        regrets.groupby(["optimizer", "task", "method"], sort=False)
        .agg(
            accuracy=("accuracy", "mean"),
            sd=("accuracy", "std"),
            best_fixed=("best_fixed", "first"),
            regret=("regret", "mean"),
            worst=("regret", "max"),
            answered=("answered", "sum"),
            n=("regret", "size"),
            steps=("steps", "mean"),
        )
        .reset_index()
        .round(3)  # an accuracy is a multiple of 0.28
    )
    table["failed"] = table["regret"] > FAILURE
    totals, paired = totals_table(table), paired_table(regrets)
    text = (
        f"Digits under shifts, {settings(plan)['steps']} steps: test accuracy in percent, a search "
        f"without an answer counting {GUESSING:g}; regret in points\nto the best of {len(GRID)} "
        f"fixed rates of the same optimizer (chosen on test); failed: mean regret above "
        f"{FAILURE:g}; steps of all trials\n\n"
        f"{plain(records(table))}\n\n{plain(records(totals))}\n\n"
        f"Accuracy, {GUARDED} less the other, paired over tasks and seeds "
        f"(95 %, bootstrap over tasks, then seeds; Wilcoxon's p):\n\n{plain(records(paired))}"
    )
    summary = {
        f"failed/{row['optimizer']}/{row['method']}": float(row["failed"])
        for row in totals.to_dict("records")
    }
    tables = {"regrets": table, "totals": totals, "paired": paired}
    return Report(text, tables, figures={"regrets": figure(table)}, summary=summary)


def totals_table(table: pd.DataFrame) -> pd.DataFrame:
    """Failures, regrets and steps by optimizer and method."""
    rows = []
    for (optimizer, method), part in table.groupby(["optimizer", "method"], sort=False):
        six = part[part["task"].isin(SIX)]
        rows.append(
            {
                "optimizer": optimizer,
                "method": method,
                "failed of the six": f"{int(six['failed'].sum())}/{len(six)}",
                "failed": int(part["failed"].sum()),
                "of": len(part),
                "median regret": float(part["regret"].median()),
                "worst task": float(part["regret"].max()),
                "mean regret": float(part["regret"].mean()),
                "mean steps": float(part["steps"].mean()),
            }
        )
    return pd.DataFrame(rows).round(3)


def paired_table(regrets: pd.DataFrame) -> pd.DataFrame:
    """The guarded runs against each other method, by optimizer and over all of them."""
    everything = regrets.assign(task=regrets["optimizer"] + ", " + regrets["task"])
    parts = [*regrets.groupby("optimizer", sort=False), ("all", everything)]
    return pd.DataFrame(
        {"optimizer": name, "against": other, **paired_difference(part, (GUARDED, other))}
        for name, part in parts
        for other in (PAPER, PLAIN, EXPTEST)
    ).round({"mean": 2, "low": 2, "high": 2})


def figure(table: pd.DataFrame) -> Figure:
    """A panel an optimizer: regret by task, a dot a method, the limit of failure dashed."""
    from matplotlib.figure import Figure

    tasks = [*(n for n in SIX if n in set(table["task"]))]
    tasks += [name for name in ALL if name in set(table["task"]) and name not in SIX]
    place = {name: len(tasks) - 1 - number for number, name in enumerate(tasks)}
    drawn = Figure(figsize=(13.0, 1.4 + 0.36 * len(tasks)), layout="constrained")
    panels = drawn.subplots(1, len(OPTIMIZERS), sharey=True, sharex=True)
    for axes, optimizer in zip(panels, OPTIMIZERS, strict=True):
        part = table[table["optimizer"] == optimizer]
        for number, (method, color) in enumerate(_COLORS.items()):
            rows = part[part["method"] == method]
            # One below the other, so that equal regrets do not hide each other.
            heights = [place[task] + 0.24 - 0.16 * number for task in rows["task"]]
            axes.scatter(rows["regret"], heights, color=color, s=26, label=method, zorder=3)
        axes.axvline(FAILURE, color="#24292f", linestyle="--", linewidth=0.8)
        axes.axvline(0.0, color="#d0d7de", linewidth=0.8)
        axes.set_title(OPTIMIZERS[optimizer], fontsize=10)
        axes.set_xlabel("regret [points]")
        axes.set_yticks(list(place.values()), list(place))
        axes.set_ylim(-0.6, len(tasks) - 0.4)
        for edge in np.arange(len(tasks) - 1) + 0.5:
            axes.axhline(edge, color="#eaeef2", linewidth=0.8)
    handles, labels = panels[-1].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return drawn


REPRODUCTION = Reproduction(
    name="lipschitz-shifts",
    title="digits under twelve shifts: 1 / L by itself and under ExpTest, by optimizer",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
    by=("optimizer", "task", "method", "rate"),
)
