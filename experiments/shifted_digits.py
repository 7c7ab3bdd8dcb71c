"""Digits under shifts: where plain rates fail. Tasks, their grid of fixed rates, regret.

On benign tasks nearly every method is as good as the best fixed rate, so equality there proves
nothing. These are scikit-learn's digits under shifts of inputs, labels, depth and batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import nn

from experiments.harness.reproduction import SEED
from experiments.harness.resampling import DRAWS, paired_interval
from lrsearch import Split, TaskData
from lrsearch.tasks.builtin import build_mlp
from lrsearch.tasks.datasets import load_dataset

STEPS: Final = 900
QUICK_STEPS: Final = 200
GRID: Final = tuple(float(rate) for rate in 10.0 ** np.arange(-4.0, 5.1, 0.5))
FAILURE: Final = 5.0  # points of accuracy below the best fixed rate
OWN: Final = "own"  # the "rate" of a run that is no fixed rate


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


def network(data: TaskData, shift: Shift) -> nn.Sequential:
    """The task's network, with the weights that torch's generator gives now."""
    built = build_mlp(data, hidden=shift.hidden)
    with torch.no_grad():
        for layer in built:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(shift.weight_scale)
    return built


def with_regret(rows: pd.DataFrame, *, by: Sequence[str] = ("task",)) -> pd.DataFrame:
    """The methods' runs beside the best fixed rate's mean accuracy, and their regret.

    Args:
        rows: runs, with ``rate`` "own" for a method's and anything else for a fixed one.
        by: what is compared with what.
    """
    keys = list(by)
    fixed = rows[rows["rate"] != OWN]
    means = fixed.groupby([*keys, "rate"])["accuracy"].mean()
    best = means.groupby(keys).max().rename("best_fixed")
    methods = rows[rows["rate"] == OWN].join(best, on=keys)
    return methods.assign(regret=methods["best_fixed"] - methods["accuracy"])


def paired_difference(
    regrets: pd.DataFrame, pair: tuple[str, str], *, draws: int = DRAWS
) -> dict[str, float]:
    """Mean difference of accuracy, first method less second, where tasks and seeds vary.

    Returns:
        "mean", "low" and "high" (95 %, bootstrap over tasks, then seeds), "pvalue" (Wilcoxon).
    """
    wide = regrets.pivot(index=["task", SEED], columns="method", values="accuracy")
    difference = (wide[pair[0]] - wide[pair[1]]).unstack(SEED).to_numpy()
    return asdict(paired_interval(difference, draws=draws))
