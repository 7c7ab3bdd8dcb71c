"""Where the published method breaks: shifted digits tasks, ExpTest's modes beside a dense grid.

On benign tasks nearly every method is as good as the best fixed rate, so equality there proves
nothing. These are scikit-learn's digits under shifts of inputs, labels, depth and batch size. Each
mode starts at its own bound; the grid of fixed rates of the same optimizer gives the regret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from experiments.banks import Bank
from experiments.exptest.data import as_percent, notebook_bound
from experiments.exptest.methods import MODES, NOTEBOOK, exptest_run
from experiments.exptest.training import Driver, FixedRates, minibatches, train
from experiments.harness.cells import Cell, Measured, Row
from experiments.harness.reproduction import SEED, Plan, Report, Reproduction, Results
from lrsearch import Split, TaskData, TrainingTask
from lrsearch.cli.tables import plain
from lrsearch.engine.bound import rate_bound
from lrsearch.engine.result import records
from lrsearch.tasks.builtin import build_mlp
from lrsearch.tasks.datasets import load_dataset

STEPS: Final = 900
QUICK_STEPS: Final = 200
GRID: Final = tuple(float(rate) for rate in 10.0 ** np.arange(-4.0, 5.1, 0.5))
FAILURE: Final = 5.0  # points of accuracy below the best fixed rate
PAIR: Final = ("robust", "paper")


@dataclass(frozen=True, slots=True)
class Shift:
    """One task.

    Attributes:
        hidden: widths of the ReLU layers.
        scale: inputs are standardised and multiplied by this, or raw (0 to 16) for None.
        noise: share of the training labels that are drawn anew.
        batch_size: rows a step.
        weight_scale: of the first weights.
    """

    hidden: tuple[int, ...] = (64,)
    scale: float | None = 1.0
    noise: float = 0.0
    batch_size: int = 32
    weight_scale: float = 1.0


TASKS: Final = {
    "logistic": Shift(hidden=()),
    "logistic, raw pixels": Shift(hidden=(), scale=None),
    "mlp": Shift(),
    "mlp, raw pixels": Shift(scale=None),
    "mlp, inputs x 0.01": Shift(scale=0.01),
    "mlp, inputs x 100": Shift(scale=100.0),
    "mlp, 30 % label noise": Shift(noise=0.3),
    "mlp, batch 8": Shift(batch_size=8),
    "mlp, batch 256": Shift(batch_size=256),
    "mlp, weights x 3": Shift(weight_scale=3.0),
    "six hidden layers": Shift(hidden=(64,) * 6),
}


def task_data(shift: Shift, seed: int) -> TaskData:
    """Digits, split 60/20/20 by the seed, under a shift. Noise is in the training labels alone."""
    digits = load_dataset("digits", seed)
    if shift.scale is None:
        from sklearn.datasets import load_digits

        from lrsearch.tasks.datasets import split_indices

        inputs, labels = load_digits(return_X_y=True)
        parts = split_indices(len(labels), seed, classes=labels)
        raw = [torch.tensor(inputs[part]).float() for part in parts]
    else:
        raw = [part.inputs * shift.scale for part in (digits.train, digits.validation, digits.test)]
    labels_of = [part.targets.clone() for part in (digits.train, digits.validation, digits.test)]
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(labels_of[0]), generator=generator) < shift.noise
    drawn = torch.randint(0, digits.outputs, (len(labels_of[0]),), generator=generator)
    labels_of[0] = torch.where(wrong, drawn, labels_of[0])
    train_split, validation, test = (Split(x, y) for x, y in zip(raw, labels_of, strict=True))
    return TaskData(train_split, validation, test, digits.outputs, "digits")


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
    first = _network(data, shift)
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
        rows.append({"method": mode, "rate": "own", "lr": rates[number], **story().as_row()})
    rows += [{"method": "SGD", "rate": f"{rate:.3g}", "lr": rate} for rate in GRID]
    for row, percent in zip(rows, accuracy, strict=True):
        row |= {"accuracy": percent, "steps": steps}
    return Measured(rows, list(curves))


def _network(data: TaskData, shift: Shift) -> nn.Sequential:
    network = build_mlp(data, hidden=shift.hidden)
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(shift.weight_scale)
    return network


def _bound(mode: str, data: TaskData, shift: Shift) -> float:
    if mode == NOTEBOOK:
        return notebook_bound(data.train.inputs)
    task = TrainingTask(
        "digits",
        data=lambda seed: data,
        model=lambda given: _network(given, shift),
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
    paired = paired_difference(regrets)
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


def with_regret(rows: pd.DataFrame) -> pd.DataFrame:
    """The modes' runs with the best fixed rate's mean accuracy on their task, and the regret."""
    fixed = rows[rows["method"] == "SGD"]
    means = fixed.groupby(["task", "rate"])["accuracy"].mean()
    best = means.groupby("task").max().rename("best_fixed")
    modes = rows[rows["method"] != "SGD"].join(best, on="task")
    return modes.assign(regret=modes["best_fixed"] - modes["accuracy"])


def paired_difference(regrets: pd.DataFrame, *, draws: int = 5000) -> dict[str, float]:
    """Mean difference of accuracy with an interval that lets tasks and seeds vary."""
    wide = regrets.pivot(index=["task", SEED], columns="method", values="accuracy")
    difference = (wide[PAIR[0]] - wide[PAIR[1]]).unstack(SEED).to_numpy()
    generator = np.random.default_rng(0)
    tasks, seeds = difference.shape
    drawn = [
        difference[
            generator.integers(tasks, size=tasks)[:, None],
            generator.integers(seeds, size=(tasks, seeds)),
        ].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    flat = difference.ravel()
    pvalue = float(stats.wilcoxon(flat).pvalue) if np.any(flat) else 1.0
    return {
        "mean": float(difference.mean()),
        "low": float(low),
        "high": float(high),
        "pvalue": pvalue,
    }


REPRODUCTION = Reproduction(
    name="exptest-shifts",
    title="digits under eleven shifts: where each mode fails, against a dense grid",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
    by=("task", "method", "rate"),
)
