"""[E] Table 4 and Figure 4: VGG-16 on CIFAR-10, ExpTest with momentum beside optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from math import ceil
from typing import Any, Final

import torch

from experiments.deep.cells import images_of, notes_on, sizes
from experiments.deep.cells import measure as measure_cell
from experiments.deep.drivers import Driver, Fixed, UnderExpTest
from experiments.deep.models.network import Network
from experiments.deep.models.vgg import vgg16
from experiments.deep.preparation import standardised
from experiments.deep.published import EXPTEST_MOMENTUM, FACTORS, TABLE4
from experiments.deep.speed import OPTIONS
from experiments.exptest.methods import FROM_PAPER
from experiments.exptest.published import OWN
from experiments.exptest.report import curves_figure, exptest_summary, sorted_rows
from experiments.exptest.training import OPTIMIZERS
from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.comparing import Figures, comparison_table
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from experiments.harness.text import titled
from lrsearch import Split, TaskData, TrainingTask
from lrsearch.engine.bound import rate_bound
from lrsearch.stats.convergence import Mode

BY: Final = ("method", "rate")
EPOCHS: Final = 75
MOMENTUM: Final = 0.9
CEILING: Final = 1.0  # the paper's: losses above it are not drawn
# Forms of ExpTest: its tests, and the bound where it starts. The code behind the table is not
# public, so there is no "notebook" form.
FORMS: Final[dict[str, tuple[Mode, Mode]]] = {
    "ExpTest (paper)": ("paper", "paper"),
    "ExpTest (robust)": ("robust", "robust"),
    f"ExpTest ({FROM_PAPER})": ("robust", "paper"),
}


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    return sizes(plan, epochs=EPOCHS)


def cells(plan: Plan) -> Sequence[Cell]:
    """ExpTest first, and a whole seed before the next; a quick plan has one rate of the five."""
    factors = (1.0,) if plan.quick else FACTORS
    rows = [(form, OWN) for form in FORMS]
    rows += [
        (method, f"{factor:g}")
        for method in OPTIMIZERS
        if method != "Adadelta"
        for factor in factors
    ]
    rows.append(("Adadelta", OWN))
    seeds = plan.seed_range(quick=1)
    return [{"method": method, "rate": rate, SEED: seed} for seed in seeds for method, rate in rows]


def measure(cell: Cell, plan: Plan) -> Measured:
    """Train one VGG-16, from where it was left; images as they are, since [E] names no moves."""
    given = settings(plan)
    rate = _rate(cell, plan)
    done = measure_cell(
        cell,
        plan,
        given,
        dataset="cifar10",
        network=vgg16,
        method=partial(_driver, name=cell["method"], rate=rate),
        prepare=standardised,
    )
    for row in done.rows:
        row["lr"] = rate
    return done


@lru_cache(maxsize=4)
def bound(mode: Mode, data_dir: str | None, rows: int) -> float:
    """Where each mode starts; "paper" is also what the rates are multiples of.

    Args:
        mode: "paper": 2 / lambda_max of the images standardised per pixel; "robust": see
            ``lrsearch.engine.bound``.
        data_dir: where the images are.
        rows: training images that count.
    """
    images = images_of("cifar10", data_dir, torch.device("cpu"), rows, 1)
    prepare = standardised(images.train)
    inputs = torch.cat([prepare(part).flatten(1) for part in torch.split(images.train, 5000)])
    split = Split(inputs, images.train_labels)
    data = TaskData(split, split, split, outputs=10, name="cifar10")
    task = TrainingTask(
        "cifar10",
        data=lambda seed: data,
        model=lambda data: vgg16(),
        batch_size=128,
        epochs=EPOCHS,
        optimizer="momentum",
    )
    return rate_bound(task, data, mode).lr_max


def report(results: Results, plan: Plan) -> Report:
    """Published against measured; the paper's five panels as one figure."""
    published: Figures = {**TABLE4, **{(form, OWN): EXPTEST_MOMENTUM for form in FORMS}}
    given = settings(plan)
    table = comparison_table(
        results.rows, published, by=BY, value="accuracy", order=sorted_rows(list(published))
    )
    title = (
        "[E] Table 4: VGG-16 on CIFAR-10, best test accuracy of any epoch in percent; ExpTest "
        "drives SGD\nwith momentum; rates in multiples of the bound"
    )
    parts = [titled(title, table, by=BY, digits=2, cut=plan.quick)]
    parts += notes_on(results.rows, epochs=given["epochs"], quick=plan.quick)
    figure = curves_figure(
        results,
        FACTORS,
        window=ceil(given["rows"] / given["batch_size"]),
        ceiling=CEILING,
        title="VGG-16 on CIFAR-10, training loss (moving average of an epoch)",
    )
    epochs = results.epochs.drop(columns=["run"])
    return Report(
        "\n\n".join(parts),
        {"comparison": table, "epochs": epochs},
        {"curves": figure},
        exptest_summary(table, "test/accuracy"),
    )


def _rate(cell: Cell, plan: Plan) -> float | None:
    """Where the optimizer starts; None for its own."""
    rows = settings(plan)["rows"]
    if cell["method"] in FORMS:
        return bound(FORMS[cell["method"]][1], plan.data_dir, rows)
    if cell["rate"] == OWN:
        return None
    return float(cell["rate"]) * bound("paper", plan.data_dir, rows)


def _driver(
    network: Network, batch_size: int, steps: int, *, name: str, rate: float | None
) -> Driver:
    """[E] names no weight decay."""
    parameters = list(network.parameters())
    if name in FORMS:
        assert rate is not None
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM)
        return UnderExpTest(optimizer, network, mode=FORMS[name][0], steps=steps)
    group = {"params": parameters, **({} if rate is None else {"lr": rate})}
    return Fixed(OPTIMIZERS[name]([group]))


REPRODUCTION = Reproduction(
    name="exptest-table4",
    title="[E] Table 4, Fig. 4: VGG-16 on CIFAR-10 against five optimizers x five rates",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
    by=BY,
    options=OPTIONS,
    epochs=True,
    workers=1,
)
