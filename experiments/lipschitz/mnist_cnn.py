"""[N] 7.1, [L] 7.3.1: the CNN on MNIST at rates of 1 / L, renewed every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final

import pandas as pd
import torch

from experiments.harness.cells import Cell, Measured
from experiments.harness.comparing import Figures, Published, comparison_table
from experiments.harness.reproduction import SEED, Plan, Report, Reproduction, Results
from experiments.harness.text import titled
from experiments.lipschitz.cnn_figures import accuracy_figure, rate_figure
from experiments.lipschitz.cnn_training import CnnRun, Images, Limits, Method, mnist_images, train
from lrsearch.cli.tables import plain

METHOD: Final = "method"
MOMENTUM: Final = 0.9
ADAM: Final = partial(torch.optim.Adam, eps=1e-7)  # Keras' epsilon
METHODS: Final[Mapping[str, Method]] = {
    "SGD": Method(partial(torch.optim.SGD, lr=0.01), {"first_epoch": "papers"}),
    "Momentum": Method(
        partial(torch.optim.SGD, lr=0.01, momentum=MOMENTUM),
        {"first_epoch": "papers", "start": 0.1},  # K, and the rate of the papers' velocity
    ),
    "Adam": Method(
        partial(ADAM, lr=0.001),  # as the authors' notebook: averages that grow from zero
        {"first_epoch": "batch", "squared": "elementwise", "bias_correction": False},
    ),
    # [L] 7.4.2: the defaults of Keras, for want of published baselines on MNIST.
    "SGD 0.01": Method(partial(torch.optim.SGD, lr=0.01)),
    "Momentum 0.01": Method(partial(torch.optim.SGD, lr=0.01, momentum=MOMENTUM)),
    "Adam 0.001": Method(partial(ADAM, lr=0.001)),
}
ADAPTIVE: Final = tuple(name for name, method in METHODS.items() if method.options is not None)
# [L] Table 3. "VA" is the best epoch on the test set, of one run.
PUBLISHED: Final[Figures] = {
    ("SGD",): Published(99.5, unit=0.1),
    ("Momentum",): Published(99.57, unit=0.01),
    ("Adam",): Published(99.43, unit=0.01),
}
FULL_SEEDS: Final = 2


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    if plan.quick:
        return {"rows": 256, "test_rows": 256, "epochs": 2, "batch_size": 32}
    return {"rows": 60_000, "test_rows": 10_000, "epochs": 20, "batch_size": 256}


def cells(plan: Plan) -> Sequence[Cell]:
    """The published runs first, and a whole seed before the next."""
    seeds = plan.seed_range(full=FULL_SEEDS, quick=1)
    return [{METHOD: method, SEED: seed} for seed in seeds for method in METHODS]


def measure(cell: Cell, plan: Plan) -> Measured:
    """Train one network, from where it was left."""
    given = settings(plan)
    run = CnnRun(
        _images(plan.data_dir, given["rows"], given["test_rows"]),
        METHODS[cell[METHOD]],
        seed=cell[SEED],
        batch_size=given["batch_size"],
    )
    limits = Limits(given["epochs"], plan.deadline)
    return train(run, limits, plan.checkpoint(given, cell))


def report(results: Results, plan: Plan) -> Report:
    """The best epoch against what was published; the last one, and the rates, beside it."""
    rows, epochs = results.rows, results.epochs
    best = comparison_table(rows, PUBLISHED, by=[METHOD], value="accuracy")
    best = best.sort_values(METHOD, key=lambda names: names.map(list(METHODS).index))
    best = best.reset_index(drop=True)
    total = settings(plan)["epochs"]
    lines = _lines(rows, epochs, total)
    title = "[L] Table 3, MNIST: best test accuracy of any epoch, in percent"
    text = titled(title, best, by=[METHOD], digits=2, cut=plan.quick)
    text += f"\n\nMeans over the runs, at the last of {total} epochs:\n\n{plain(lines)}"
    unfinished = int(((rows["epochs"] < total) & (rows["diverged"] == 0)).sum())
    if unfinished:
        text += f"\n\n{unfinished} runs are not finished: their epochs so far are shown."
    return Report(
        text,
        {"comparison": best, "epochs": epochs.drop(columns=["run"])},
        {"rates": rate_figure(epochs, ADAPTIVE), "accuracy": accuracy_figure(epochs)},
        {
            f"test/accuracy/{method}": float(value)
            for method, value in zip(best[METHOD], best["measured"], strict=True)
        },
    )


def _lines(rows: pd.DataFrame, epochs: pd.DataFrame, total: int) -> list[dict[str, Any]]:
    lines = []
    for method in METHODS:
        runs = rows[rows[METHOD] == method]
        if not len(runs):
            continue
        rates = epochs.loc[epochs[METHOD] == method, "lr"]
        done = sorted(set(runs["epochs"]))
        lines.append(
            {
                "method": method,
                "runs": len(runs),
                "epochs": " to ".join(str(number) for number in {done[0]: 0, done[-1]: 0}),
                "test %": f"{runs['accuracy_last'].mean():.2f}",
                "train %": f"{runs['train_accuracy'].mean():.2f}",
                "best epoch": f"{runs['best_epoch'].mean():.1f}",
                "rates": f"{rates.min():.3g} to {rates.max():.3g}",
                "": "diverged" if runs["diverged"].any() else "",
            }
        )
    return lines


@lru_cache(maxsize=1)
def _images(data_dir: str | None, train_rows: int, test_rows: int) -> Images:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return mnist_images(data_dir, device, train=train_rows, test=test_rows)


REPRODUCTION = Reproduction(
    name="lipschitz-mnist-cnn",
    title="[L] Table 3, [N] 7.1: a CNN on MNIST at rates of 1 / L, beside Keras' default rates",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
    by=(METHOD,),
)
