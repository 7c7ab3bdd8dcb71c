"""Logistic regression on MNIST: what Tables 1 and 2 and Figure 2 of [E] train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any, Final

import torch
from torch import nn

from experiments.banks import Bank
from experiments.exptest import data
from experiments.exptest.methods import NOTEBOOK, exptest_run
from experiments.exptest.notebook import FTest
from experiments.exptest.notebook_fit import notebook_f_test
from experiments.exptest.training import Driver, FixedRates, minibatches, train
from experiments.harness.cells import Measured, Row
from experiments.harness.reproduction import Plan
from lrsearch import TaskData, TrainingTask
from lrsearch.engine.bound import rate_bound

BATCH_SIZE: Final = 32
EPOCHS: Final = 5
QUICK_ROWS: Final = 4096
QUICK_EPOCHS: Final = 2


@dataclass(frozen=True, slots=True)
class Fixed:
    """A run at a fixed rate: ``rate`` None is the optimizer's own."""

    method: str
    rate: float | None
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tested:
    """A run under ExpTest in one of its modes; ``start`` names another mode's bound."""

    mode: str
    row: Mapping[str, Any]
    alpha: float = 0.05
    beta: float = 0.33
    f_test: FTest = notebook_f_test
    start: str | None = None

    @property
    def bound_mode(self) -> str:
        """The mode at whose bound it starts."""
        return self.start or self.mode


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    rows = QUICK_ROWS if plan.quick else 60000
    return {"rows": rows, "epochs": QUICK_EPOCHS if plan.quick else EPOCHS}


def task_data(plan: Plan) -> TaskData:
    """The images of a plan."""
    whole = data.mnist(plan.data_dir)
    return data.cut(whole, QUICK_ROWS) if plan.quick else whole


@lru_cache(maxsize=8)
def bound(mode: str, plan: Plan) -> float:
    """Where each mode starts. All images count, on a cut too."""
    if mode == NOTEBOOK:
        return data.notebook_bound(data.mnist(plan.data_dir).train.inputs)
    images = data.mnist(plan.data_dir)
    task = TrainingTask(
        "mnist", data=lambda seed: images, model=_linear, batch_size=BATCH_SIZE, epochs=EPOCHS
    )
    return rate_bound(task, images, "paper" if mode == "paper" else "robust").lr_max


def measure(
    runs: Sequence[Fixed | Tested], plan: Plan, *, seed: int, batch_size: int = BATCH_SIZE
) -> Measured:
    """Train all runs side by side: same first weights, same batches.

    Args:
        runs: what to train.
        plan: rows and epochs.
        seed: of weights and batches.
        batch_size: rows a step.
    """
    images = task_data(plan)
    torch.manual_seed(seed)
    first = _linear(images)
    bank = Bank([first] * len(runs), loss="cross_entropy")
    epochs = settings(plan)["epochs"]
    steps = epochs * ceil(len(images.train) / batch_size)
    drivers: list[Driver] = []
    stories = {}
    fixed: dict[str, list[tuple[float | None, list[nn.Parameter]]]] = {}
    for number, each in enumerate(runs):
        if isinstance(each, Fixed):
            fixed.setdefault(each.method, []).append((each.rate, bank.parameters(number)))
            continue
        driver, stories[number] = exptest_run(
            bank,
            number,
            each.mode,
            bound(each.bound_mode, plan),
            total_steps=steps,
            alpha=each.alpha,
            beta=each.beta,
            f_test=each.f_test,
        )
        drivers.append(driver)
    drivers += [FixedRates(method, given) for method, given in fixed.items()]
    batches = minibatches(images.train, batch_size=batch_size, seed=seed, steps=steps)
    curves = train(bank, drivers, batches, steps=steps)
    accuracy = data.as_percent(bank.accuracy(images.test.inputs, images.test.targets))
    final = bank.losses(images.train.inputs, images.train.targets).tolist()
    rows: list[Row] = []
    for number, each in enumerate(runs):
        row: Row = {**each.row, "steps": steps, "accuracy": accuracy[number]}
        row["train_loss"] = final[number]
        if isinstance(each, Fixed):
            row["lr"] = each.rate
        else:
            row |= {"lr": bound(each.bound_mode, plan), **stories[number]().as_row()}
        rows.append(row)
    return Measured(rows, list(curves))


def _linear(images: TaskData) -> nn.Module:
    return nn.Linear(images.train.inputs.shape[1], images.outputs)
