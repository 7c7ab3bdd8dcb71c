"""ExpTest beside its nine-point grid on the built-in tasks: paired seeds, 95 % t intervals.

Run: python benchmarks/builtin_tasks.py --seeds 10
"""

from __future__ import annotations

import argparse

import numpy as np
import optuna
from scipy.stats import t as student

from lrsearch import compare
from lrsearch.tasks import builtin_names

SMALL = [name for name in builtin_names() if not name.startswith(("mnist", "housing"))]


def interval(differences: np.ndarray) -> str:
    mean = differences.mean()
    if len(differences) < 2:
        return f"{mean:+.4f}"
    half = student.ppf(0.975, len(differences) - 1) * differences.std(ddof=1)
    half /= np.sqrt(len(differences))
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=SMALL)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--optimizer", nargs="+", default=["sgd"])
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"seeds: {options.seeds}; differences are ExpTest - grid, paired by seed, 95 % interval")
    heads = (
        "task",
        "optimizer",
        "metric",
        "ExpTest",
        "grid",
        "difference",
        "to grid's best on test",
    )
    print("| " + " | ".join([*heads, "steps"]) + " |")
    print("|---|---|---|---|---|---|---|---|")
    for task in options.tasks:
        for optimizer in options.optimizer:
            table = compare(
                task,
                seeds=options.seeds,
                optimizer=optimizer,
                tracker="none",
                data_dir=options.data_dir,
            )
            ours = table[table.method == "exptest"].set_index("seed")
            grid = table[table.method == "grid"].set_index("seed")
            print(
                f"| {task} | {optimizer} | {table.attrs['metric']} | {ours.value.mean():.4f} | "
                f"{grid.value.mean():.4f} | {interval((ours.value - grid.value).to_numpy())} | "
                f"{interval((ours.value - grid.oracle_value).to_numpy())} | "
                f"{ours.steps.sum() / grid.steps.sum():.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
