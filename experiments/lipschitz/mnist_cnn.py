"""[N] 7.1, [L] 7.3.1: the CNN on MNIST at rates of 1 / L, renewed every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final

import pandas as pd
import torch

from experiments.epochs import Limits, train
from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.comparing import Figures, comparison_table, readable
from experiments.harness.reproduction import RUN, Plan, Report, Reproduction, Results
from experiments.harness.text import titled
from experiments.images import Images, read_images
from experiments.lipschitz.cnn_figures import accuracy_figure, rate_figure
from experiments.lipschitz.cnn_published import BEST, LAST, NOTE, RATES
from experiments.lipschitz.cnn_training import CnnRun, Method
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
FULL_SEEDS: Final = 2


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    if plan.quick:
        return {"rows": 256, "test_rows": 256, "epochs": plan.epochs or 2, "batch_size": 32}
    return {"rows": 60_000, "test_rows": 10_000, "epochs": plan.epochs or 20, "batch_size": 256}


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
    best = _comparison(rows, BEST, "accuracy")
    last = _comparison(rows, LAST, "accuracy_last")
    total = settings(plan)["epochs"]
    title = "[L] Table 3, MNIST: best test accuracy of any epoch, in percent"
    parts = [
        titled(title, best, by=[METHOD], digits=2, cut=plan.quick),
        f"Test accuracy at the last of {total} epochs, against the authors' notebooks",
        plain(readable(last, by=[METHOD], digits=2)),
        NOTE,
        "Beside it, means over the runs",
        plain(_lines(rows, epochs)),
    ]
    unfinished = int(((rows["epochs"] < total) & (rows["diverged"] == 0)).sum())
    if unfinished:
        parts.append(f"{unfinished} runs are not finished: these are their epochs so far.")
    return Report(
        "\n\n".join(parts),
        {"comparison": best, "comparison_last": last, "epochs": epochs.drop(columns=[RUN])},
        {
            "rates": rate_figure(epochs, ADAPTIVE, _rates_of_torch()),
            "accuracy": accuracy_figure(epochs),
        },
        {
            f"test/{column}/{method}": float(value)
            for column, table in (("accuracy", best), ("accuracy_last", last))
            for method, value in zip(table[METHOD], table["measured"], strict=True)
        },
    )


def _comparison(rows: pd.DataFrame, published: Figures, value: str) -> pd.DataFrame:
    order = [(method,) for method in METHODS]
    return comparison_table(rows, published, by=[METHOD], value=value, order=order)


def _rates_of_torch() -> dict[str, list[float]]:
    """The published rates, momentum's for a velocity without the papers' factor 1 - mu."""
    return {
        method: [(1 - MOMENTUM if method == "Momentum" else 1.0) * rate for rate in rates]
        for method, rates in RATES.items()
    }


def _lines(rows: pd.DataFrame, epochs: pd.DataFrame) -> list[dict[str, Any]]:
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
    return read_images("mnist", data_dir, device, train=train_rows, test=test_rows)


REPRODUCTION = Reproduction(
    name="lipschitz-mnist-cnn",
    title="[L] Table 3, [N] 7.1: a CNN on MNIST at rates of 1 / L, beside Keras' default rates",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
    by=(METHOD,),
    epochs=True,
)
