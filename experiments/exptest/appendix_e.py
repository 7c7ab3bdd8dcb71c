"""[E] Appendix E and Figure 5: which network for California Housing? Widths x depths x rates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
import torch

from experiments.banks import Bank
from experiments.exptest import housing
from experiments.exptest.methods import NOTEBOOK
from experiments.exptest.published import TABLE3_FACTORS
from experiments.exptest.training import FixedRates, minibatches, train
from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.comparing import comparison_table
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from lrsearch.cli.tables import plain
from lrsearch.tasks.builtin import build_mlp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS: Final = (32, 512, 1024)
DEPTHS: Final = (2, 8, 32)
SELECTED: Final = (32, 2)


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    return {**housing.settings(plan), "stop": "first epoch whose validation loss does not fall"}


def cells(plan: Plan) -> Sequence[Cell]:
    """One run a cell, small networks first: the largest takes 2 000 times as long."""
    widths = WIDTHS[:1] if plan.quick else WIDTHS
    depths = DEPTHS[:2] if plan.quick else DEPTHS
    models = sorted(product(widths, depths), key=lambda model: model[0] ** 2 * model[1])
    return [
        {"width": width, "depth": depth, "rate": f"{factor:g}", SEED: seed}
        for width, depth in models
        for seed in plan.seed_range()
        for factor in TABLE3_FACTORS
    ]


def measure(cell: Cell, plan: Plan) -> Measured:
    """Plain gradient descent until the validation loss rises; the best weights are tested."""
    split = housing.task_data(plan)
    torch.manual_seed(cell[SEED])
    network = build_mlp(split, hidden=(cell["width"],) * cell["depth"])
    bank = Bank([network], loss="mse")
    rate = float(cell["rate"]) * housing.bound(NOTEBOOK, plan)
    epochs = int(settings(plan)["epochs"])
    best = housing.BestWeights(bank, split)
    curves = train(
        bank,
        [FixedRates("SGD", [(rate, bank.parameters(0))])],
        minibatches(split.train, batch_size=None, seed=0, steps=epochs),
        steps=epochs,
        after=best.look_and_stop,
    )
    _, test = best.test_losses()
    row = {"lr": rate, "test_mse": test, "steps": curves.shape[1], "best_epoch": best.epoch}
    return Measured([row], list(curves))


def report(results: Results, plan: Plan) -> Report:
    """Test loss of each model at each rate; the paper prints none, but says which was lowest."""
    rows = results.rows.assign(
        model=[
            f"{width} wide, {depth} deep"
            for width, depth in zip(results.rows["width"], results.rows["depth"], strict=True)
        ]
    )
    by = ("model", "rate")
    table = comparison_table(rows, {}, by=by, value="test_mse")
    means = table.pivot(index="model", columns="rate", values="measured")
    means = means.loc[list(dict.fromkeys(rows["model"]))]
    steps = rows.groupby("model", sort=False)["steps"].median().to_dict()
    lines = [
        {
            "model": model,
            **{f"rate {rate}": value for rate, value in row.items()},
            "median epochs": steps[model],
        }
        for model, row in means.iterrows()
    ]
    selected = "{} wide, {} deep".format(*SELECTED)
    wins = [rate for rate in means.columns if means[rate].idxmin() == selected]
    text = (
        "[E] Appendix E: test MSE of the weights best on validation, mean over seeds "
        "(rates in multiples of the bound)\n\n"
        f"{plain(lines)}\n\n"
        f"The paper's choice, {selected}, is the lowest of {len(means)} models measured at "
        f"{len(wins)} of {len(means.columns)} rates; the paper prints no numbers, but says "
        "'consistently'."
    )
    return Report(text, {"comparison": table}, {"models": _figure(means)})


def _figure(means: pd.DataFrame) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    axes = figure.subplots()
    order = sorted(means.columns, key=float)
    for model, row in means.iterrows():
        axes.plot([float(rate) for rate in order], row[order], "o-", label=model)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("learning rate / bound")
    axes.set_ylabel("test MSE")
    axes.legend(fontsize=8)
    axes.set_title(
        "California Housing, gradient descent until the validation loss rises", fontsize=10
    )
    return figure


REPRODUCTION = Reproduction(
    name="exptest-appendix-e",
    title="[E] App. E, Fig. 5: California Housing, nine networks x five rates, early stopping",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
    by=("width", "depth", "rate"),
    method="SGD",
)
