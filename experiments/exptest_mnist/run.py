"""[E] IV.A, Table 1, first row: ExpTest on MNIST logistic regression.

All 60 000 training images, batch 32, 5 epochs, cross-entropy; published test accuracy 92.30 +- 0.07
percent (n = 5, population standard deviation). Unlike in the built-in task `mnist-logistic` nothing
is held out for validation, since nothing is chosen: ExpTest restarts and decays inside one run.

Run: python -m experiments.exptest_mnist.run --data-dir path/to/data
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn

from lrsearch import ExpTest, Split, TaskData, TrainingTask
from lrsearch.engine.bound import rate_bound
from lrsearch.stats import MODES, Mode
from lrsearch.tasks.sources import read_arrays
from lrsearch.training.loop import build_model, make_optimizer, steps_per_epoch, train
from lrsearch.training.threads import suitable_threads

PUBLISHED = "92.30 +- 0.07"
MEAN, DEVIATION = 0.1307, 0.3081  # of all training pixels, as in the authors' transform


def load(data_dir: str | None) -> TaskData:
    arrays = read_arrays("mnist", data_dir)

    def split(part: str) -> Split:
        pixels = torch.tensor(arrays[f"{part}_images"]).flatten(1).float() / 255.0
        labels = torch.tensor(arrays[f"{part}_labels"]).long()
        return Split((pixels - MEAN) / DEVIATION, labels)

    test = split("test")
    return TaskData(split("train"), test, test, outputs=10, name="mnist")


def run(task: TrainingTask, data: TaskData, mode: Mode, bound: float, seed: int) -> float:
    """Train once; returns the test accuracy in percent."""
    model = build_model(task, data, seed)
    optimizer = make_optimizer(task.optimizer, list(model.parameters()), bound)
    steps = steps_per_epoch(task, data) * task.epochs
    exptest = ExpTest(optimizer, model=model, mode=mode, total_steps=steps)
    began = time.perf_counter()
    with suitable_threads(model, task.batch_size or len(data.train)):
        outcome = train(task, data, model=model, optimizer=optimizer, seed=seed, controller=exptest)
    decisions = [w.decision for w in exptest.windows]
    print(
        f"{mode:<7} seed {seed}: {100 * outcome.test.metric:.2f} %, "
        f"rate {bound:.4g} -> {outcome.lr:.4g}, {decisions.count('restart')} restarts, "
        f"{decisions.count('decay')} decays, {len(decisions)} windows, {outcome.steps} steps, "
        f"{time.perf_counter() - began:.1f} s",
        flush=True,
    )
    return 100.0 * outcome.test.metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    data = load(options.data_dir)
    task = TrainingTask(
        "exptest-mnist",
        data=lambda seed: data,
        model=lambda d: nn.Linear(784, d.outputs),
        epochs=options.epochs,
        batch_size=32,
    )
    for mode in MODES:
        bound = rate_bound(task, data, mode).lr_max
        accuracy = np.array([run(task, data, mode, bound, s) for s in range(options.seeds)])
        deviation = accuracy.std(ddof=1) if len(accuracy) > 1 else float("nan")
        print(
            f"{mode}: {accuracy.mean():.2f} +- {deviation:.2f} % (sample sd, n = {len(accuracy)}); "
            f"published {PUBLISHED} %\n"
        )


if __name__ == "__main__":
    main()
