"""``compare``: methods side by side on one task, each charged for every step it takes."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import pandas as pd

from lrsearch.engine.drawing import log_comparison
from lrsearch.engine.methods import METHODS
from lrsearch.engine.record import open_run
from lrsearch.engine.request import as_task
from lrsearch.engine.result import SearchResult
from lrsearch.engine.running import EXPERIMENT, search
from lrsearch.errors import InvalidArgumentError, InvalidTypeError, require_choice, require_whole
from lrsearch.training.task import TrainingTask

COLUMNS = (
    "method",
    "seed",
    "lr",
    "value",
    "oracle_value",
    "val_loss",
    "train_loss",
    "steps",
    "seconds",
)


def compare(
    task: TrainingTask | str,
    *,
    methods: Sequence[str] = ("exptest", "grid"),
    seeds: int = 3,
    data_dir: str | PathLike[str] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Run several methods on one task, with paired seeds.

    Args:
        task: as for ``search``.
        methods: names of methods.
        seeds: how many seeds, from 0; each fixes split, weights and batches for all methods.
        data_dir: folder with data files of built-in tasks.
        options: further arguments of ``search``, the same for all methods; ``start``,
            ``multipliers``, ``anneal``, ``guard`` and ``race`` reach the methods that know them.

    Returns:
        One row per method and seed: method, seed, lr, value (test metric of the point that the
        method itself chose), oracle_value (its best point on test), val_loss, train_loss, steps
        (all gradient steps, restarts and every grid point included), seconds. ``attrs`` holds
        "task", "metric" and "direction".

    Raises:
        ValueError, TypeError: on bad input, in one line.
    """
    if isinstance(methods, str) or not isinstance(methods, Sequence) or not methods:
        raise InvalidTypeError(f"methods must be a sequence of method names, got {methods!r}")
    for method in methods:
        require_choice("methods", method, METHODS)
    if require_whole("seeds", seeds) < 1:
        raise InvalidArgumentError(f"seeds must be at least 1, got {seeds!r}")
    if "study_name" in options:
        raise InvalidArgumentError(
            "study_name is for one search: compare makes a study per method and seed"
        )
    chosen = as_task(task, data_dir)
    results = [
        search(chosen, method=method, seed=seed, **_options_of(method, methods, options))
        for seed in range(seeds)
        for method in methods
    ]
    named = ("tracker", "tracking_uri", "experiment")
    record_comparison(results, **{key: options[key] for key in named if key in options})
    return comparison_table(results)


def record_comparison(
    results: Sequence[SearchResult],
    *,
    tracker: str = "auto",
    tracking_uri: str | None = None,
    experiment: str = EXPERIMENT,
) -> None:
    """Leave table and figure of a comparison with the tracker, in a run of kind "comparison".

    It lies beside the studies, in their experiment, and names their runs in ``lrsearch.studies``.

    Args:
        results: of the studies; nothing happens if they are not recorded.
        tracker, tracking_uri, experiment: where to, as for ``search``.
    """
    if not any(result.run_id for result in results):
        return
    methods = list(dict.fromkeys(result.method for result in results))
    task = results[0].task
    name = f"{task}: {' and '.join(methods)}"
    run = open_run(tracker, experiment, name, tracking_uri, ",".join(methods), kind="comparison")
    finished = False
    try:
        seeds = sorted({result.seed for result in results})
        run.log_params({"task": task, "seeds": ",".join(map(str, seeds))})
        run.set_tags({"lrsearch.studies": ",".join(result.run_id for result in results)})
        table = comparison_table(results)
        run.log_table("comparison", table)
        run.log_table("summary", summary(table))
        log_comparison(run, results)
        finished = True
    finally:
        run.finish("complete" if finished else "failed")


def _options_of(method: str, methods: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """Without what only others of the methods know; what none of them knows is refused."""
    from_lipschitz = options.get("start") == "lipschitz"
    knows = {
        "start": ("exptest", "lipschitz"),
        "multipliers": ("exptest", "lipschitz") if from_lipschitz else ("lipschitz",),
        **dict.fromkeys(("anneal", "guard", "race"), ("exptest",)),
    }
    foreign = {
        name
        for name, able in knows.items()
        if method not in able and any(other in able for other in methods)
    }
    return {name: value for name, value in options.items() if name not in foreign}


def comparison_table(results: Sequence[SearchResult]) -> pd.DataFrame:
    """The rows of ``compare``."""
    rows = [{column: getattr(result, column) for column in COLUMNS} for result in results]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    first = results[0]
    table.attrs = {"task": first.task, "metric": first.metric, "direction": first.direction}
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per method: means over the seeds, and steps relative to the largest spender."""
    grouped = table.groupby("method", sort=False)
    means = grouped[["lr", "value", "oracle_value", "train_loss", "steps", "seconds"]].mean()
    means.insert(1, "value_std", grouped["value"].std())
    means["share_of_steps"] = means["steps"] / means["steps"].max()
    return means.reset_index()
