"""Where the published method breaks: shifted digits tasks, ExpTest's modes beside a dense grid.

Each mode starts at its own bound; the grid of fixed rates of the same optimizer gives the regret.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd
import torch

from experiments.banks import Bank
from experiments.exptest.data import as_percent, notebook_bound
from experiments.exptest.methods import MODES, NOTEBOOK, exptest_run
from experiments.exptest.training import Driver, FixedRates, minibatches, train
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
from lrsearch import TaskData, TrainingTask
from lrsearch.cli.tables import plain
from lrsearch.engine.bound import rate_bound
from lrsearch.engine.result import records

PAIR: Final = ("robust", "paper")


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    return {"steps": QUICK_STEPS if plan.quick else STEPS}


def cells(plan: Plan) -> Sequence[Cell]:
    """One bank a task and seed."""
    return [
        {"task": task, SEED: seed} for task in TASKS for seed in plan.seed_range(full=10, quick=1)
    ]


def measure(cell: Cell, plan: Plan) -> Measured:
    """All modes and all fixed rates from the same weights on the same batches."""
    shift, seed = TASKS[cell["task"]], int(cell[SEED])
    data, steps = task_data(shift, seed), int(settings(plan)["steps"])
    torch.manual_seed(seed)
    first = network(data, shift)
    bank = Bank([first] * (len(MODES) + len(GRID)), loss="cross_entropy")
    drivers: list[Driver] = []
    stories, rates = [], []
    for number, mode in enumerate(MODES):
        rates.append(_bound(mode, data, shift))
        driver, story = exptest_run(bank, number, mode, rates[-1], total_steps=steps)
        drivers.append(driver)
        stories.append(story)
    fixed = [(rate, bank.parameters(len(MODES) + i)) for i, rate in enumerate(GRID)]
    drivers.append(FixedRates("SGD", fixed))
    batches = minibatches(data.train, batch_size=shift.batch_size, seed=seed, steps=steps)
    curves = train(bank, drivers, batches, steps=steps)
    accuracy = as_percent(bank.accuracy(data.test.inputs, data.test.targets))
    rows: list[Row] = []
    for number, (mode, story) in enumerate(zip(MODES, stories, strict=True)):
        rows.append({"method": mode, "rate": OWN, "lr": rates[number], **story().as_row()})
    rows += [{"method": "SGD", "rate": f"{rate:.3g}", "lr": rate} for rate in GRID]
    for row, percent in zip(rows, accuracy, strict=True):
        row |= {"accuracy": percent, "steps": steps}
    return Measured(rows, list(curves))


def _bound(mode: str, data: TaskData, shift: Shift) -> float:
    if mode == NOTEBOOK:
        return notebook_bound(data.train.inputs)
    task = TrainingTask(
        "digits",
        data=lambda seed: data,
        model=lambda given: network(given, shift),
        batch_size=shift.batch_size,
    )
    return rate_bound(task, data, "paper" if mode == "paper" else "robust").lr_max


def report(results: Results, plan: Plan) -> Report:
    """Regrets and failures by mode, and the paired difference of robust and paper."""
    regrets = with_regret(results.rows)
    table = (
        regrets.groupby(["task", "method"], sort=False)
        .agg(
            accuracy=("accuracy", "mean"),
            sd=("accuracy", "std"),
            best_fixed=("best_fixed", "first"),
            regret=("regret", "mean"),
            worst=("regret", "max"),
            n=("regret", "size"),
        )
        .reset_index()
    )
    table["failed"] = table["regret"] > FAILURE
    totals = [
        {
            "mode": mode,
            "tasks failed": int(part["failed"].sum()),
            "of": len(part),
            "median regret": float(part["regret"].median()),
            "worst task": float(part["regret"].max()),
        }
        for mode, part in table.groupby("method", sort=False)
    ]
    paired = paired_difference(regrets, PAIR)
    text = (
        f"Digits under shifts, {settings(plan)['steps']} steps of SGD: test accuracy in percent; "
        f"regret in points to the best of {len(GRID)} fixed rates (chosen on test)\n\n"
        f"{plain(records(table))}\n\n"
        f"{plain(totals)}\n\n"
        f"{PAIR[0]} less {PAIR[1]}, paired over tasks and seeds: {paired['mean']:+.2f} points "
        f"[{paired['low']:+.2f}, {paired['high']:+.2f}] (95 %, bootstrap over tasks, then seeds); "
        f"Wilcoxon p = {paired['pvalue']:.2g}"
    )
    failed = table.groupby("method", sort=False)["failed"].sum()
    summary = {f"failed/{mode}": float(count) for mode, count in failed.items()}
    return Report(text, {"regrets": table, "totals": pd.DataFrame(totals)}, summary=summary)


REPRODUCTION = Reproduction(
    name="exptest-shifts",
    title="digits under eleven shifts: where each mode fails, against a dense grid",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
    by=("task", "method", "rate"),
)
