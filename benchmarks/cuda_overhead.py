"""Cost of the controllers, and of the data, on a CUDA device: ResNet-20 at batch 128.

The bare loop against the same with ExpTest (while it sums gradients all the time, and in use) or
with LipschitzLR, by CUDA events around blocks of steps. Paired: a block without and one with it,
the order swapped from pair to pair; the ratio is the median over the pairs, its 95 % interval from
order statistics. The data (gather, move, centre) are timed by themselves, as a share of a step; the
share of a block in which no kernel ran is torch's profiler's. Without a device it says so.
Run: python benchmarks/cuda_overhead.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.stats import binom

from experiments.deep.drivers import Driver, Fixed, Lipschitz, UnderExpTest
from experiments.deep.models.network import Network
from experiments.deep.models.resnet import resnet_v1
from experiments.deep.preparation import centred
from experiments.deep.speed import Speed
from experiments.deep.training import DeepRun
from experiments.images import Images

BATCH = 128
ROWS = 50_000
FOREVER = 10**9  # steps: windows of ExpTest that gather gradients all the time


def sgd(network: Network, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)


def bare(network: Network, batch_size: int, steps: int) -> Driver:
    return Fixed(sgd(network, 1e-3))


def lipschitz(network: Network, batch_size: int, steps: int) -> Driver:
    return Lipschitz(sgd(network, 1e-3), network, batch_size=batch_size)


def gathering(network: Network, batch_size: int, steps: int) -> Driver:
    """A tiny rate makes windows so long that gradients are summed in every step."""
    return UnderExpTest(sgd(network, 1e-9), network, mode="robust", steps=FOREVER)


def in_use(network: Network, batch_size: int, steps: int) -> Driver:
    """Windows, sums and tests as they come."""
    return UnderExpTest(sgd(network, 0.05), network, mode="robust", steps=FOREVER)


CASES = {
    "LipschitzLR": lipschitz,
    "ExpTest, gathering": gathering,
    "ExpTest, in use": in_use,
}


class Loop:
    """A training loop in blocks of steps."""

    def __init__(self, images: Images, method: Callable[..., Driver], speed: Speed) -> None:
        self._images = images
        self.run = DeepRun(
            images,
            partial(resnet_v1, 20),
            method,
            seed=0,
            batch_size=BATCH,
            epochs=1,
            preparation=centred(images.train),
            speed=speed,
        )
        self.run._network.train()
        self._moves = self.run._moves(0)
        self._order = torch.randperm(len(images.train)).to(images.train.device)
        self._hits = torch.zeros((), dtype=torch.long, device=images.train.device)
        self._at = 0

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gathered, moved, centred."""
        part = slice(self._at, self._at + BATCH)
        self._at = (self._at + BATCH) % (len(self._order) - BATCH)
        rows = self._order[part]
        moves = None if self._moves is None else self._moves[part]
        inputs = self.run._preparation(self._images.train[rows], moves)
        return inputs, self._images.train_labels[rows]

    def step(self) -> None:
        """One gradient step."""
        self.run._step(*self.batch(), self._hits)


def milliseconds(work: Callable[[], object], steps: int) -> float:
    """Of a step, on the device, between events before and behind a block."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / steps


def idle_share(loop: Loop, steps: int) -> float:
    """Share of a block's time in which no kernel ran, in percent; profiling makes it larger."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        whole = milliseconds(loop.step, steps) * steps
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e3
    return 100.0 * max(0.0, 1.0 - busy / whole)


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median between the ends of its 95 % interval."""
    ordered = np.sort(values)
    low = max(int(binom.ppf(0.025, len(ordered), 0.5)) - 1, 0)
    return float(ordered[low]), float(np.median(ordered)), float(ordered[len(ordered) - 1 - low])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--block", type=int, default=50, help="steps")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--compile", default="off", choices=("off", "on", "graphs"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is at hand: run this where there is one")
    speed = Speed(
        torch.device("cuda"),
        precision=options.precision,
        channels_last=True,
        compile=options.compile,
    )
    # Noise will do: nothing here depends on what the images show.
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (ROWS, 3, 32, 32), generator=generator, dtype=torch.uint8).cuda()
    labels = torch.randint(10, (ROWS,), generator=generator).cuda()
    images = Images(pixels, labels, pixels[:BATCH], labels[:BATCH])
    print(f"ResNet-20, {BATCH} rows a step, {speed.text}; {options.pairs} pairs of blocks")
    with speed.applied():
        for name, method in CASES.items():
            loops = [Loop(images, bare, speed), Loop(images, method, speed)]
            for loop in loops:
                milliseconds(loop.step, 4 * options.block)
            times = np.empty((options.pairs, 2))
            for pair in range(options.pairs):
                for each in (0, 1) if pair % 2 == 0 else (1, 0):
                    times[pair, each] = milliseconds(loops[each].step, options.block)
            low, middle, high = median_interval(100.0 * (times[:, 1] / times[:, 0] - 1.0))
            bare_ms = float(np.median(times[:, 0]))
            print(f"{name:<20} {bare_ms:.3f} ms bare, {middle:+.2f} % ({low:+.2f} to {high:+.2f})")
        loop = Loop(images, bare, speed)
        milliseconds(loop.step, 4 * options.block)
        step, data = (milliseconds(work, options.block) for work in (loop.step, loop.batch))
        share = 100.0 * data / step
        print(f"data                 {data:.3f} ms of {step:.3f}: {share:.1f} % of a step")
        print(f"device idle          {idle_share(loop, options.block):.1f} % of a block")


if __name__ == "__main__":
    main()
