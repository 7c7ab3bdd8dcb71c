"""Steps per second of the reproductions: a bank beside one network after the other.

Pairs of blocks in one process, one thread. "Plain" is what the loop was before: one network, its
own gather of the batch, autograd, torch's default optimizer.

Run: python benchmarks/bank_speed.py --pairs 15
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import cycle

import numpy as np
import torch
from torch import nn

from experiments.banks import Bank
from experiments.exptest.training import OPTIMIZERS, FixedRates, minibatches, train
from lrsearch import Split

RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
METHODS = tuple(name for name in OPTIMIZERS if name != "Adadelta")


def mnist_like() -> Split:
    torch.manual_seed(0)
    return Split(torch.randn(60_000, 784), torch.randint(0, 10, (60_000,)))


def housing_like() -> Split:
    torch.manual_seed(0)
    return Split(torch.randn(12_384, 8), torch.randn(12_384, 1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
    )


def plain(model: nn.Module, split: Split, batch: int | None, loss: str) -> Callable[[int], None]:
    function = nn.functional.cross_entropy if loss == "cross_entropy" else nn.functional.mse_loss
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def block(steps: int) -> None:
        for inputs, targets in minibatches(split, batch_size=batch, seed=0, steps=steps):
            value = function(model(inputs), targets)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return block


def banked(
    models: list[nn.Module], split: Split, batch: int | None, loss: str
) -> Callable[[int], None]:
    bank = Bank(models, loss=loss)
    drivers = []
    per_method = max(1, len(models) // len(METHODS))
    for number, method in zip(range(0, len(models), per_method), cycle(METHODS), strict=False):
        runs = [(RATES[i % 5], bank.parameters(number + i)) for i in range(per_method)]
        drivers.append(FixedRates(method if len(models) > 1 else "SGD", runs))

    def block(steps: int) -> None:
        batches = minibatches(split, batch_size=batch, seed=0, steps=steps)
        train(bank, drivers, batches, steps=steps)

    return block


def compare(
    name: str,
    before: Callable[[int], None],
    after: Callable[[int], None],
    runs: int,
    *,
    steps: int,
    pairs: int,
) -> None:
    before(steps), after(steps)
    rates = []
    for pair in range(pairs):
        seconds = {}
        order = ((0, before), (1, after)) if pair % 2 else ((1, after), (0, before))
        for which, block in order:
            began = time.perf_counter()
            block(steps)
            seconds[which] = time.perf_counter() - began
        rates.append((steps / seconds[0], runs * steps / seconds[1]))
    plain_rate, bank_rate = np.median(rates, axis=0)
    ratio = np.median([b / a for a, b in rates])
    print(
        f"{name:<28} {plain_rate:>9.0f} {bank_rate:>9.0f} run-steps/s   ratio {ratio:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':<28} {'plain':>9} {'bank':>9}")
    split = mnist_like()
    for runs in (1, 20):
        models: list[nn.Module] = [nn.Linear(784, 10) for _ in range(runs)]
        compare(
            f"logistic, batch 32, {runs} runs",
            plain(models[0], split, 32, "cross_entropy"),
            banked(models, split, 32, "cross_entropy"),
            runs,
            steps=300,
            pairs=options.pairs,
        )
    split = housing_like()
    compare(
        "8-32-32-1, full batch, 1 run",
        plain(mlp(), split, None, "mse"),
        banked([mlp()], split, None, "mse"),
        1,
        steps=40,
        pairs=options.pairs,
    )


if __name__ == "__main__":
    main()
