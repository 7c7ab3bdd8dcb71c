"""[L] Table 2 and Figure 2: accuracy after a number of epochs, with the rate 0.1 and with 1/L."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.harness.cells import SEED, Cell, Measured, Row
from experiments.harness.comparing import comparison_table
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from experiments.harness.text import titled
from experiments.lipschitz import data, images, rates
from experiments.lipschitz.descent import Floats, Logistic, Softmax, trace
from experiments.lipschitz.published import (
    AT_SIZE,
    COVERTYPE_ROWS,
    GUESS,
    OF_BATCH,
    OURS,
    RATES2,
    TABLE2,
    WHOLE,
)
from experiments.lipschitz.report import accuracy_figure, curves_figure, recomputed_text

SEEDS: Final = 20
LARGE_SEEDS: Final = 5  # of MNIST and Covertype
QUICK_SEEDS: Final = 2
QUICK_ROWS: Final = 4_000
BY: Final = ("dataset", "epochs", "rate")
HELD_OUT: Final = ", held out"
# Data set -> epochs after which it is tested. 100 is what the notebook's run of Breast cancer took.
EPOCHS: Final[Mapping[str, tuple[int, ...]]] = {
    "Iris": (200,),
    "Digits": (200,),
    "Breast cancer": (100, 1000),
    f"Breast cancer{HELD_OUT}": (1000,),
    "Cover Type": (1000,),
    f"Cover Type{HELD_OUT}": (1000,),
    "MNIST": (200,),
}
QUICK_EPOCHS: Final = 200
LARGE: Final = ("MNIST", "Cover Type")
FILES: Final = {
    "Iris": "iris",
    "Digits": "digits",
    "Breast cancer": "breast-cancer",
    "Cover Type": "covertype",
}


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    return {
        "initial_weights": "N(0, 1); MNIST: Glorot uniform, zero bias",
        "split": rates.SPLIT,
        "batch_size": images.BATCH_SIZE,
        "epochs": QUICK_EPOCHS if plan.quick else "published",
        "clip": images.CLIP,
        "image_epochs": images.QUICK_EPOCHS if plan.quick else images.EPOCHS,
        "rows": QUICK_ROWS if plan.quick else "all",
    }


def cells(plan: Plan) -> Sequence[Cell]:
    """One a data set and seed, MNIST's first: they are the long ones."""
    return [
        {"dataset": name, SEED: seed}
        for name in reversed(tuple(EPOCHS))
        for seed in plan.seed_range(
            full=LARGE_SEEDS if name.startswith(LARGE) else SEEDS, quick=QUICK_SEEDS
        )
    ]


def measure(cell: Cell, plan: Plan) -> Measured:
    """Both rates from the same initial weights."""
    name, seed = str(cell["dataset"]), int(cell[SEED])
    if name == "MNIST":
        return images.measure(plan, seed=seed)
    title = name.removesuffix(HELD_OUT)
    sample = data.load(FILES[title], plan.data_dir)
    if plan.quick:
        sample = data.Sample(sample.inputs[:QUICK_ROWS], sample.targets[:QUICK_ROWS])
    if title in ("Iris", "Digits"):
        return _split_softmax(sample, plan, name, seed)
    return _binary(sample, plan, name, seed)


def _stops(name: str, plan: Plan) -> tuple[int, ...]:
    return tuple(min(epochs, QUICK_EPOCHS) if plan.quick else epochs for epochs in EPOCHS[name])


def _split_softmax(sample: data.Sample, plan: Plan, name: str, seed: int) -> Measured:
    """Raw features, a random 70 % to train on, tested on the rest."""
    train, test = rates.train_rows(len(sample.inputs), seed)
    classes = len(np.unique(sample.targets))
    inputs, targets = sample.inputs, sample.targets.astype(int)
    model = Softmax(inputs[train], targets[train], classes)
    tested = Softmax(inputs[test], targets[test], classes)
    weights = _weights(seed, inputs.shape[1], classes)
    chosen = {GUESS: 0.1, OURS: rates.classes_rate(model.inputs, classes)}
    return _measured(model, tested, weights, chosen, _stops(name, plan), EPOCHS[name])


def _binary(sample: data.Sample, plan: Plan, name: str, seed: int) -> Measured:
    """Scaled features; tested on the rows trained on, as the notebook does, or on a held out 30 %.

    A held out part is scaled by the sums of all rows, as the features are before a split.
    """
    inputs = rates.inputs_of(FILES[name.removesuffix(HELD_OUT)], sample.inputs)
    train = test = slice(None)
    if name.endswith(HELD_OUT):
        train, test = rates.train_rows(len(inputs), seed)
    model = Logistic(inputs[train], sample.targets[train])
    tested = Logistic(inputs[test], sample.targets[test])
    chosen = {GUESS: 0.1, OURS: rates.classes_rate(model.inputs, 2)}
    if name == "Cover Type":
        # Outputs go as 1/m at given weights, so a step of rate r moves them by r / m^2.
        chosen[AT_SIZE] = RATES2["Cover Type"] * (len(inputs) / COVERTYPE_ROWS) ** 2
    weights = _weights(seed, inputs.shape[1])
    return _measured(model, tested, weights, chosen, _stops(name, plan), EPOCHS[name])


def _weights(seed: int, *shape: int) -> Floats:
    """Of one run, shape (n, 1, ...)."""
    return np.random.default_rng(seed).standard_normal((shape[0], 1, *shape[1:]))


def _measured(
    model: Logistic | Softmax,
    tested: Logistic | Softmax,
    weights: Floats,
    chosen: Mapping[str, float],
    stops: Sequence[int],
    named: Sequence[int],
) -> Measured:
    rows: list[Row] = []
    curves: list[NDArray[np.float32]] = []
    for label, rate in chosen.items():
        last = max(stops)
        losses, at = trace(model, weights, rate, epochs=last, every=1, stops=stops)
        for stop, epochs in zip(stops, named, strict=True):
            rows.append(
                {
                    "epochs": epochs,
                    "rate": label,
                    "lr": rate,
                    "accuracy": float(tested.accuracy(at[stop])[0]),
                    "train_accuracy": float(model.accuracy(at[stop])[0]),
                    "train_loss": float(losses[0, stop]),
                    "rises": int(np.sum(np.diff(losses[0, : stop + 1]) > 0.0)),
                    "epochs_per_point": 1,
                }
            )
            curves.append(losses[0, : stop + 1].astype(np.float32))
    return Measured(rows, curves)


def report(results: Results, plan: Plan) -> Report:
    """Published against measured accuracy, every printed 1/L recomputed, and curves."""
    published = dict(TABLE2)
    for (name, epochs, rate), figure in TABLE2.items():
        if f"{name}{HELD_OUT}" in EPOCHS and epochs == 1000:
            published[f"{name}{HELD_OUT}", epochs, rate] = figure
    order = [
        (name, epochs, rate)
        for name, stops in EPOCHS.items()
        for epochs in stops
        for rate in (GUESS, OURS, AT_SIZE, WHOLE, OF_BATCH)
    ]
    table = comparison_table(results.rows, published, by=BY, value="accuracy", order=order)
    recomputed = pd.DataFrame(rates.recomputed_table2(plan.data_dir))
    title = "[L] Table 2: accuracy in percent after N_E epochs (published: single runs)"
    text = (
        f"{titled(title, table, by=BY, digits=2, cut=plan.quick)}\n\n"
        f"{_gains(results.rows)}\n\n{recomputed_text(recomputed)}"
    )
    ours = table[table["rate"] == OURS]
    summary = {
        f"test/accuracy/{name} {epochs}": float(mean)
        for name, epochs, mean in zip(
            ours["dataset"], ours["epochs"], ours["measured"], strict=True
        )
    }
    figures = {"curves": curves_figure(results, log_epochs=True)}
    if (results.rows["dataset"] == "MNIST").any():
        figures["mnist"] = accuracy_figure(results.rows)
    return Report(text, {"comparison": table, "recomputed": recomputed}, figures, summary)


def _gains(rows: pd.DataFrame) -> str:
    """1/L less 0.1 on the same weights and rows: how often it is ahead, and by how much."""
    lines = []
    for name, epochs in ((name, epochs) for name, stops in EPOCHS.items() for epochs in stops):
        part = rows[(rows["dataset"] == name) & (rows["epochs"] == epochs)]
        if not len(part):
            continue
        wide = part.pivot(index=SEED, columns="rate", values="accuracy")
        gain = wide[OURS] - wide[GUESS]
        told = ""
        if (name, epochs, OURS) in TABLE2:
            ahead = TABLE2[name, epochs, OURS].mean - TABLE2[name, epochs, GUESS].mean
            told = f"; published {ahead:+.2f}"
        lines.append(
            f"{name}, {epochs} epochs: 1/L less 0.1 is {gain.mean():+.2f} points in the mean, "
            f"above 0 in {int((gain > 0).sum())} of {len(gain)} runs{told}"
        )
    return "\n".join(lines)


REPRODUCTION = Reproduction(
    name="lipschitz-table2",
    title="[L] Table 2, Fig. 2: accuracy after N_E epochs, 0.1 against 1/L, five data sets",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
    by=BY,
    method="gradient descent",
)
