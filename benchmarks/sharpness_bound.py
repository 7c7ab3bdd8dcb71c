"""`sharpness_bound` on built-in tasks: its cost, and how far above it full batches still train.

For each task and optimizer, from the same weights: the bound at the start; the bound after 50 full
batches (SGD at a quarter of its bound, Adam and RMSprop at 1e-3); the largest rate, in steps of
2 x from an eighth of the first bound up, at which 100 full batches end below the loss that they
began with. Cost: products, and seconds in terms of a training step on the same rows. Medians over
seeds, least and most in brackets.

Run: OMP_NUM_THREADS=1 python benchmarks/sharpness_bound.py
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from lrsearch import Split, TrainingTask, sharpness_bound
from lrsearch.engine.bound import rate_bound
from lrsearch.tasks import load_task
from lrsearch.training.loop import build_model, loss_function, make_optimizer

TASKS = ("digits-logistic", "digits-mlp", "diabetes-mlp")
OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam")
POWERS = range(-3, 14)
EARLIER, STEPS = 50, 100


def train(task: TrainingTask, model: torch.nn.Module, optimizer, split: Split, steps: int) -> float:
    """The loss after so many full batches; ends at one that is not finite."""
    function = loss_function(task.loss)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = function(model(split.inputs), split.targets)
        if not bool(torch.isfinite(loss)):
            return float("inf")
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(function(model(split.inputs), split.targets))


def one_seed(task: TrainingTask, seed: int) -> list[float]:
    data = task.data(seed)
    split, function = data.train, loss_function(task.loss)
    model = build_model(task, data, seed)
    parameters = list(model.parameters())
    optimizer = make_optimizer(task.optimizer, parameters, 1e-3)
    began = time.perf_counter()
    first = sharpness_bound(optimizer, model, function, [(split.inputs, split.targets)])
    cost = time.perf_counter() - began
    adaptive = task.optimizer in ("rmsprop", "adam")
    optimizer.param_groups[0]["lr"] = 1e-3 if adaptive else first.lr_max / 4
    began = time.perf_counter()
    train(task, model, optimizer, split, EARLIER)
    step = (time.perf_counter() - began) / EARLIER
    later = sharpness_bound(optimizer, model, function, [(split.inputs, split.targets)])
    largest = 0.0
    for power in POWERS:
        model = build_model(task, data, seed)
        start = float(function(model(split.inputs), split.targets).detach())
        rate = first.lr_max * 2.0**power
        optimizer = make_optimizer(task.optimizer, list(model.parameters()), rate)
        if train(task, model, optimizer, split, STEPS) >= start:
            break
        largest = rate
    present = rate_bound(task, data, "robust").lr_max
    return [present, first.lr_max, later.lr_max, largest, first.products, cost / step]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    heads = ("inputs' bound", "sharpness bound", "50 steps later", "largest that trains")
    print("| task | optimizer | " + " | ".join(heads) + " | products | cost in steps |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.tasks:
        for optimizer in OPTIMIZERS:
            task = replace(load_task(name), optimizer=optimizer, batch_size=None)
            table = np.array([one_seed(task, seed) for seed in range(options.seeds)])
            low, middle, high = np.quantile(table, [0.0, 0.5, 1.0], axis=0)
            cells = [
                f"{m:.2g} ({a:.2g} to {b:.2g})" for a, m, b in zip(low, middle, high, strict=True)
            ]
            print(f"| {name} | {optimizer} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
