"""MNIST in [L] Table 2: a softmax layer with a bias on standardised pixels, mini-batches of 128."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log, log1p, sqrt
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from experiments.banks import Bank
from experiments.exptest.training import FixedRates, minibatches, train
from experiments.harness.cells import Measured, Row
from experiments.harness.reproduction import Plan
from experiments.lipschitz.data import mnist
from experiments.lipschitz.published import GUESS, OF_BATCH, OURS, WHOLE
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
CLIP: Final = 1e-7  # Keras' epsilon


class ClippedBank(Bank):
    """A bank whose first runs train on Keras' cross-entropy, the others on the whole one.

    Keras (2.2, of the notebook's time) clips the probability of the true class to
    [1e-7, 1 - 1e-7] before it takes the logarithm, so that a row beyond has no gradient: images
    that are surely wrong pull no more. The notebook's losses tell: 0.9593 at 6.36 % errors is 15.1
    an error, near -log(1e-7) = 16.1.

    Args:
        models: as for ``Bank``.
        clipped: how many of them, from the first on.
    """

    def __init__(self, models: Sequence[nn.Module], *, clipped: int) -> None:
        super().__init__(models, loss="cross_entropy")
        self._clipped = clipped

    def _loss_of(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        chosen = targets.expand(len(self), 1, -1)
        log_probability = torch.log_softmax(output, dim=1)
        true = log_probability.gather(1, chosen)  # (runs, 1, rows)
        slope = log_probability.exp_()
        slope.scatter_add_(1, chosen, slope.new_full((1,), -1.0).expand_as(chosen))
        kept = true[: self._clipped].clamp(log(CLIP), log1p(-CLIP))
        slope[: self._clipped] *= kept == true[: self._clipped]
        true[: self._clipped] = kept
        return -true.mean(dim=(1, 2)), slope.div_(len(targets))


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
    ours = _whole_rate(images)
    chosen = {GUESS: 0.1, OURS: ours, WHOLE: ours, OF_BATCH: _batch_rate(images)}
    bank = ClippedBank([_layer(images, seed)] * len(chosen), clipped=2)
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
