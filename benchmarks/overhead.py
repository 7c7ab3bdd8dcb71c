"""Cost of ``ExpTest.step`` in a training loop: blocks of steps without and with it, in turn.

Paired: one model, one process; each pair is a block of bare steps and one of steps with
``ExpTest.step``, the order swapped from pair to pair. The overhead is the median over the pairs of
the ratio less 1, between the ends of its 95 % interval; in processor time, which leaves out what
else the machine does, and in wall time. Stages:

* summing: the search's first steps, whose gradients are summed;
* searching: the search after that, between looks at the window;
* training: after the search, looks included.

Run: OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from lipschitz_overhead import median_interval, seconds
from torch import nn

from lrsearch import ExpTest

ROWS = 4096
CASES = {
    "logistic 64-10": (32, 300),  # rows of a batch, steps of a block
    "logistic 784-10": (32, 200),
    "MLP": (256, 20),
    "CNN": (64, 10),
}
OPTIMIZERS = {
    "SGD": (partial(torch.optim.SGD), 0.02),  # and a rate that trains
    "Adam": (partial(torch.optim.Adam), 1e-3),
}
STAGES = ("summing", "searching", "training")


def make_model(case: str) -> nn.Module:
    if case.startswith("logistic"):
        return nn.Linear(64 if case == "logistic 64-10" else 784, 10)
    if case == "MLP":
        return nn.Sequential(
            nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 10),
    )


class Loop:
    """A training loop whose steps may be taken with or without the controller."""

    def __init__(self, case: str, optimizer: str, stage: str) -> None:
        torch.manual_seed(0)
        self._batch, _ = CASES[case]
        self._model = make_model(case)
        width = 64 if case == "logistic 64-10" else 784
        self._inputs = torch.randn(ROWS, width)
        self._targets = (self._inputs @ torch.randn(width, 10)).argmax(dim=1)
        if case == "CNN":
            self._inputs = self._inputs.reshape(-1, 28, 28)
        make, rate = OPTIMIZERS[optimizer]
        if stage != "training":
            rate = 1e-7  # with such windows neither sums nor search come to an end
        self._optimizer = make(self._model.parameters(), lr=rate)
        self._controller = ExpTest(
            self._optimizer,
            model=self._model,
            full_batch=stage == "searching",  # as if the sums were done
            total_steps=None if stage == "training" else 10**12,
            race=False,
        )
        self._at = 0
        self.run(200, True)
        while stage == "training" and self._controller.phase == "searching":
            self.run(100, True)

    def run(self, steps: int, watched: bool) -> None:
        """So many steps, watched by the controller or bare."""
        for _ in range(steps):
            rows = slice(self._at, self._at + self._batch)
            self._at = (self._at + self._batch) % (ROWS - self._batch)
            self._optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self._model(self._inputs[rows]), self._targets[rows])
            loss.backward()
            self._optimizer.step()
            if watched:
                self._controller.step(loss)


def measure(run: Callable[[int, bool], None], block: int, pairs: int) -> np.ndarray:
    """Wall and processor seconds a step, shape (pairs, without and with, wall and processor)."""
    times = np.empty((pairs, 2, 2))
    for pair in range(pairs):
        for watched in (False, True) if pair % 2 == 0 else (True, False):
            times[pair, int(watched)] = seconds(partial(run, block, watched))
    return times / block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    options = parser.parse_args()
    print("model            batch  optimizer  stage      bare us  more us", end="")
    print("  processor time            wall time")
    for case in options.cases:
        for optimizer in options.optimizers:
            for stage in options.stages:
                loop = Loop(case, optimizer, stage)
                batch, block = CASES[case]
                times = measure(loop.run, block, options.pairs)
                bare = 1e6 * np.median(times[:, 0, 1])
                more = 1e6 * np.median(times[:, 1, 1] - times[:, 0, 1])
                ratios = 100.0 * (times[:, 1] / times[:, 0] - 1.0)
                shown = [
                    "{1:6.2f} % [{0:.2f}, {2:.2f}]".format(*median_interval(ratios[:, kind]))
                    for kind in (1, 0)
                ]
                print(
                    f"{case:<15}  {batch:5d}  {optimizer:<9}  {stage:<9}  {bare:7.1f}  {more:7.2f}"
                    f"  {shown[0]:<24}  {shown[1]}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
