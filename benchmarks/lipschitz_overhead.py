"""Cost of LipschitzLR on an epoch of the MNIST CNN: the bare loop against the same with it.

Paired: one step without and one with it, in one process, the order swapped from pair to pair; the
ratio is the median over the pairs, its 95 % interval from order statistics. The estimate at an
epoch's end, ``step()``, is timed by itself and shared out among the epoch's 235 steps.
Run: OMP_NUM_THREADS=1 python benchmarks/lipschitz_overhead.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import binom
from torch import nn

from experiments.lipschitz.network import mnist_cnn
from lrsearch import LipschitzLR

EPOCH = 235  # steps of 256 rows


class Loop:
    """A training loop in steps; ``squared`` None is the bare one."""

    def __init__(self, batch: int, squared: str | None) -> None:
        torch.manual_seed(0)
        self._model = mnist_cnn().to(memory_format=torch.channels_last)
        images = torch.rand(batch, 1, 28, 28)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.randint(10, (batch,))
        self.optimizer = torch.optim.Adam(self._model.parameters(), lr=1e-3)
        if squared is not None:
            self._controller = LipschitzLR(self.optimizer, self._model, squared=squared)

    def step(self) -> None:
        """One gradient step, with the hook's share of the work."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self._model(self._images), self._labels)
        loss.backward()
        self.optimizer.step()

    def estimate(self) -> None:
        """What an epoch's end adds."""
        self._controller.step()


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor time; the latter leaves out what else the machine does."""
    wall, own = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - own


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median between the ends of its 95 % interval."""
    ordered = np.sort(values)
    low = max(int(binom.ppf(0.025, len(ordered), 0.5)) - 1, 0)
    return float(ordered[low]), float(np.median(ordered)), float(ordered[len(ordered) - 1 - low])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--squared", default="norm", choices=("norm", "elementwise", "mean"))
    options = parser.parse_args()
    loops = [Loop(options.batch, None), Loop(options.batch, options.squared)]
    for loop in loops:
        loop.step()
    times = np.empty((options.pairs, 2, 2))  # pair, bare or with, wall or processor
    estimates = []
    for pair in range(options.pairs):
        for each in (0, 1) if pair % 2 == 0 else (1, 0):
            times[pair, each] = seconds(loops[each].step)
        if pair % 10 == 9:
            estimates.append(seconds(loops[1].estimate))
            for group in loops[1].optimizer.param_groups:
                group["lr"] = 1e-3  # else the weights, and so the work, would differ
    print(f"{options.pairs} pairs of steps of {options.batch} rows, squared={options.squared!r}")
    for column, name in enumerate(("wall", "processor")):
        bare = float(np.median(times[:, 0, column]))
        end = float(np.median(estimates, axis=0)[column])
        shared = 100.0 * end / (EPOCH * bare)
        ratio = 100.0 * (times[:, 1, column] / times[:, 0, column] - 1.0) + shared
        low, middle, high = median_interval(ratio)
        print(
            f"{name:<10} a step {1e3 * bare:.1f} ms, an estimate {1e3 * end:.2f} ms "
            f"({shared:.3f} %): overhead of an epoch {middle:+.2f} % ({low:+.2f} to {high:+.2f})"
        )


if __name__ == "__main__":
    main()
