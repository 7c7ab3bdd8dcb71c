"""The race on tasks that neither the panel nor its development has: other data, other networks.

Iris, Boston, Energy, Covertype and Online News (the papers' data), scaled or in their own units, by
a linear model, tanh, GELU and ReLU networks; cases drawn at random. Each is held against a bank of
25 fixed rates, as in the panel, beside the default rate, fastai's valley and the grid of nine.

Run: python benchmarks/unseen.py --data-dir path/to/data [--cases 80] [--seeds 3]
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy import stats
from torch import nn

from experiments.bench.bank import BankRuns, train_bank
from experiments.bench.courses import PeerOutcome
from experiments.bench.measures import PERCENT_A_POINT, best_rate
from experiments.bench.peers import PEERS
from experiments.bench.replayed import grid
from experiments.lipschitz.data import load
from lrsearch import Split, TaskData, TrainingTask, search

# Name: epochs, batch size, whether values are predicted.
DATA = {
    "iris": (60, 16, False),
    "boston": (50, 32, True),
    "energy": (40, 32, True),
    "covertype": (12, 64, False),
    "news": (6, 32, False),
}
ROWS = 4000
COMMON_SHARES = 1400  # half of the articles are shared more often: the data set's own task
NETWORKS = ("linear", "tanh", "gelu", "relu")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")


def read(name: str, raw: bool, data_dir: str | None, seed: int) -> TaskData:
    """60/20/20 of at most ``ROWS`` rows; values standardised, inputs if not raw."""
    inputs, targets = load(name, data_dir)
    if name == "news":
        targets = (targets > COMMON_SHARES).astype(np.float64)
    chosen = np.random.default_rng([seed, 7]).permutation(len(inputs))[:ROWS]
    inputs, targets = inputs[chosen], targets[chosen]
    ends = int(0.6 * len(inputs)), int(0.8 * len(inputs))
    if not raw:
        deviation = inputs[: ends[0]].std(axis=0)
        inputs = (inputs - inputs[: ends[0]].mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    if DATA[name][2]:
        known = targets[: ends[0]]
        wanted = torch.tensor((targets - known.mean()) / known.std()).float().unsqueeze(1)
    else:
        wanted = torch.tensor(targets).long()
    rows = torch.tensor(inputs).float()
    parts = [
        Split(rows[part], wanted[part])
        for part in (slice(0, ends[0]), slice(*ends), slice(ends[1], None))
    ]
    return TaskData(*parts, outputs=1 if DATA[name][2] else int(targets.max()) + 1, name=name)


def build(kind: str, data: TaskData) -> nn.Module:
    """A network by name."""
    width = data.train.inputs.shape[1]
    if kind == "linear":
        return nn.Linear(width, data.outputs)
    sizes, unit = {
        "tanh": ((48, 48), nn.Tanh),
        "gelu": ((64, 64, 64, 64), nn.GELU),
        "relu": ((100,), nn.ReLU),
    }[kind]
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.Linear(width, size), unit()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, data.outputs))


def make_task(case: tuple[str, bool, str, str], data_dir: str | None) -> TrainingTask:
    """The task of a case: data set, raw, network, optimizer."""
    name, raw, kind, optimizer = case
    epochs, batch_size, regression = DATA[name]
    return TrainingTask(
        f"{name} {'raw' if raw else 'scaled'}, {kind}, {optimizer}",
        data=partial(read, name, raw, data_dir),
        model=partial(build, kind),
        loss="mse" if regression else "cross_entropy",
        metric="mse" if regression else "accuracy",
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
    )


def raced(task: TrainingTask, data: TaskData, seed: int) -> tuple[float, float]:
    """Test metric and steps of the default search."""
    found = search(task, seed=seed, tracker="none")
    return found.value, found.steps


def peer(name: str, task: TrainingTask, data: TaskData, seed: int) -> tuple[float, float]:
    """Test metric and steps of one of the panel's peers."""
    return of(PEERS[name].run(task, data, seed))


def of(outcome: PeerOutcome) -> tuple[float, float]:
    """Test metric and steps."""
    return outcome.test_metric, outcome.steps


def regret(runs: BankRuns, task: TrainingTask, values: list[float]) -> float:
    """Mean over the seeds, in the panel's points."""
    best = best_rate(runs, task.optimizer, task.direction)
    reference = np.array(list(best.test.values()))
    found = np.array(values, dtype=np.float64)
    if task.direction == "minimize":
        points = 100.0 * (found - reference) / reference.mean() / PERCENT_A_POINT
    else:
        points = 100.0 * (reference - found)
    return float(np.minimum(np.nan_to_num(points, nan=100.0, posinf=100.0), 100.0).mean())


def interval(values: np.ndarray, measure: Callable[..., float]) -> str:
    """A measure over the cases, with its 95 % bootstrap interval."""
    drawn = stats.bootstrap(
        (values,), measure, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = drawn.confidence_interval
    return f"{measure(values):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--cases", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore")
    every = [
        (n, r, k, o) for n in DATA for r in (False, True) for k in NETWORKS for o in OPTIMIZERS
    ]
    random.Random(11).shuffle(every)
    methods = {
        "exptest": raced,
        "default": partial(peer, "default"),
        "fastai valley": partial(peer, "fastai valley"),
    }
    seeds = list(range(options.seeds))
    points: dict[str, list[float]] = {name: [] for name in (*methods, "grid of nine")}
    costs: dict[str, list[float]] = {name: [] for name in points}
    for case in every[: options.cases]:
        task = make_task(case, options.data_dir)
        data = [task.data(seed) for seed in seeds]
        runs = train_bank(task, data, seeds)
        total = runs.curves.shape[-1]
        found = {
            name: [run(task, each, seed) for each, seed in zip(data, seeds, strict=True)]
            for name, run in methods.items()
        }
        found["grid of nine"] = [of(grid(runs, at)) for at in range(len(seeds))]
        for name, outcomes in found.items():
            points[name].append(regret(runs, task, [value for value, _ in outcomes]))
            costs[name].append(float(np.mean([steps for _, steps in outcomes])) / total)
        row = "  ".join(f"{name} {values[-1]:7.2f}" for name, values in points.items())
        print(f"{task.name:42s} {row}", flush=True)
    print(
        f"\n{options.cases} cases, {options.seeds} seeds; regret in points to the best fixed rate"
    )
    for name, values in points.items():
        all_points = np.array(values)
        print(
            f"{name:14s} failures {np.sum(all_points > 5):3d}  "
            f"median {interval(all_points, np.median)}  90th {np.quantile(all_points, 0.9):.2f}  "
            f"mean {interval(all_points, np.mean)}  worst {all_points.max():.2f}  "
            f"mean less exptest's {interval(all_points - np.array(points['exptest']), np.mean)}  "
            f"cost {np.median(costs[name]):.2f} runs"
        )


if __name__ == "__main__":
    main()
