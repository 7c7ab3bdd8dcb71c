"""Cost of ExpTest on a training step: the bare loop against the same loop with it.

Paired: blocks of steps with and without in turn, in one process; the ratio is the median over the
pairs of blocks. Run: OMP_NUM_THREADS=1 python benchmarks/step_overhead.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from lrsearch import ExpTest

Step = Callable[[], None]


def make_model(kind: str) -> nn.Module:
    if kind == "logistic":
        return nn.Linear(784, 10)
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 10),
    )


def make_step(kind: str, batch: int, *, with_exptest: bool, gathering: bool) -> Step:
    torch.manual_seed(0)
    model = make_model(kind)
    shape = (4096, 1, 28, 28) if kind == "cnn" else (4096, 784)
    inputs, targets = torch.randn(shape), torch.randint(0, 10, (4096,))
    # A tiny rate: the numbers do not matter here, and gathering never ends with such windows.
    rate = 1e-7 if gathering else 0.01
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    total = 10**9 if gathering else None
    controller = ExpTest(optimizer, model=model, total_steps=total) if with_exptest else None
    at = 0

    def step() -> None:
        nonlocal at
        rows = slice(at, at + batch)
        at = (at + batch) % (4096 - batch)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
        loss.backward()
        optimizer.step()
        if controller is not None:
            controller.step(loss)

    return step


def seconds(step: Step, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - began) / steps


CASES = (("logistic", 32), ("logistic", 512), ("mlp", 32), ("mlp", 512), ("cnn", 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--block", type=int, default=100)
    options = parser.parse_args()
    print("model     batch  stage      bare us  with us  overhead  (quartiles)")
    for kind, batch in (
        ("logistic", 32),
        ("logistic", 512),
        ("mlp", 32),
        ("mlp", 512),
        ("cnn", 64),
    ):
        for gathering in (False, True):
            bare = make_step(kind, batch, with_exptest=False, gathering=gathering)
            ours = make_step(kind, batch, with_exptest=True, gathering=gathering)
            block = options.block if kind != "cnn" and batch < 512 else options.block // 4
            seconds(bare, block), seconds(ours, 4 * block)
            pairs = np.array(
                [(seconds(bare, block), seconds(ours, block)) for _ in range(options.pairs)]
            )
            ratio = pairs[:, 1] / pairs[:, 0] - 1.0
            low, middle, high = 100.0 * np.quantile(ratio, [0.25, 0.5, 0.75])
            stage = "gathering" if gathering else "watching"
            times = 1e6 * np.median(pairs, axis=0)
            print(
                f"{kind:<9} {batch:5d}  {stage:<9} {times[0]:8.1f} {times[1]:8.1f}  "
                f"{middle:7.1f}%  ({low:.1f}% to {high:.1f}%)"
            )


if __name__ == "__main__":
    main()
