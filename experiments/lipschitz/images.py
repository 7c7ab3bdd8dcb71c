"""MNIST in [L] Table 2: a softmax layer with a bias on standardised pixels, mini-batches of 128."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Final

import numpy as np
import torch
from torch import nn

from experiments.banks import Bank
from experiments.exptest.training import FixedRates, minibatches, train
from experiments.harness.cells import Measured, Row
from experiments.harness.reproduction import Plan
from experiments.lipschitz.data import mnist
from experiments.lipschitz.published import GUESS, OF_BATCH, OURS
from experiments.lipschitz.rates import classes_rate
from lrsearch import Split
from lrsearch.bounds.lipschitz import lipschitz_constant

BATCH_SIZE: Final = 128  # of the notebook
EPOCHS: Final = 200
QUICK_EPOCHS: Final = 3
QUICK_ROWS: Final = 4_096
CLASSES: Final = 10
# Epochs after which accuracies are taken, for Figure 2.
MARKS: Final = (1, 2, 3, 5, 10, 20, 50, 100, 150, 200)


def measure(plan: Plan, *, seed: int) -> Measured:
    """All rates side by side: same first weights, same batches.

    Keras' own initial weights, uniform in +-sqrt(6 / (784 + 10)), and a zero bias.

    Args:
        plan: rows and epochs.
        seed: of weights and batches.
    """
    images, test = mnist(plan.data_dir)
    if plan.quick:
        images, test = (
            Split(part.inputs[:QUICK_ROWS], part.targets[:QUICK_ROWS]) for part in (images, test)
        )
    chosen = {GUESS: 0.1, OURS: _whole_rate(images), OF_BATCH: _batch_rate(images)}
    bank = Bank([_layer(images, seed)] * len(chosen), loss="cross_entropy")
    epochs = QUICK_EPOCHS if plan.quick else EPOCHS
    a_pass = ceil(len(images) / BATCH_SIZE)
    seen: list[Row] = [{} for _ in chosen]

    def look(step: int) -> bool:
        epoch, rest = divmod(step + 1, a_pass)
        if rest == 0 and epoch in MARKS:
            for prefix, part in (("accuracy", test), ("train_accuracy", images)):
                for row, share in zip(seen, bank.accuracy(part.inputs, part.targets), strict=True):
                    row[f"{prefix}_after_{epoch}"] = round(100.0 * float(share), 4)
        return False

    driver = FixedRates(
        "SGD", [(rate, bank.parameters(n)) for n, rate in enumerate(chosen.values())]
    )
    batches = minibatches(images, batch_size=BATCH_SIZE, seed=seed, steps=epochs * a_pass)
    losses = train(bank, [driver], batches, steps=epochs * a_pass, after=look)
    by_epoch = losses.reshape(len(chosen), epochs, a_pass).mean(axis=2)
    rows: list[Row] = []
    for number, (label, rate) in enumerate(chosen.items()):
        rows.append(
            {
                "epochs": EPOCHS,
                "rate": label,
                "lr": rate,
                "accuracy": seen[number][f"accuracy_after_{epochs}"],
                "train_accuracy": seen[number][f"train_accuracy_after_{epochs}"],
                "train_loss": float(by_epoch[number, -1]),
                "rises": int(np.sum(np.diff(by_epoch[number]) > 0.0)),
                "epochs_per_point": 1,
                **seen[number],
            }
        )
    return Measured(rows, list(by_epoch))


def _whole_rate(images: Split) -> float:
    """1/L with m = all rows, though a step sees 128: the published rate."""
    return classes_rate(images.inputs.double().numpy(), CLASSES)


def _batch_rate(images: Split) -> float:
    """1/L with m = 128 and the largest norm of a batch, as [L] 7.4 says it must be."""
    norms = [float(part.double().norm()) for part in torch.split(images.inputs, BATCH_SIZE)]
    constant = lipschitz_constant(
        "cross_entropy", batch_size=BATCH_SIZE, k_z=max(norms), classes=CLASSES
    )
    return 1.0 / constant


def _layer(images: Split, seed: int) -> nn.Linear:
    layer = nn.Linear(images.inputs.shape[1], CLASSES)
    reach = sqrt(6.0 / (layer.in_features + layer.out_features))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.uniform_(-reach, reach, generator=generator)
        layer.bias.zero_()
    return layer
