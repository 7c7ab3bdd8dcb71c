"""Joint searches beside each other: gradient steps to a validation loss that was fixed before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from experiments.harness.resampling import FloatArray
from experiments.joint.searching import (
    BATCH_SIZES,
    CONSTANT,
    DECAYS,
    METHODS,
    RACE,
    RATES,
    STARTUP_TRIALS,
    TPE,
    WARMUP_STEPS,
    WIDTHS,
    random_reference,
    run_study,
    study_row,
)
from experiments.joint.targets import best_after, paired_ratio, steps_to
from lrsearch.cli.tables import plain
from lrsearch.engine.result import records
from lrsearch.tasks.datasets import load_dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS: Final = ("digits", "breast-cancer")
SPLIT: Final = 0  # seed of the data's split, one for all: a target belongs to a split
REFERENCE: Final = "reference"
REFERENCE_SEED: Final = 1000
# Share of the random configurations, each at a good rate, that are at least as good.
TARGETS: Final = {"best half": 0.5, "best quarter": 0.25, "best tenth": 0.1}
MAIN: Final = "best quarter"
ALL: Final = "all"
_COLORS: Final = {RACE: "#d1242f", TPE: "#0969da", CONSTANT: "#8250df"}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run.

    Attributes:
        steps: gradient steps of a run, about.
        budget: gradient steps of a search.
        configurations, rates: of the reference.
    """

    steps: int
    budget: int
    configurations: int
    rates: tuple[float, ...]


SIZES: Final = {
    "full": Size(300, 7500, 30, tuple(float(r) for r in 10.0 ** np.arange(-4.0, 0.6, 0.5))),
    "quick": Size(60, 600, 4, (1e-3, 1e-2, 1e-1)),
}


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    return {
        **asdict(SIZES[plan.scale]),
        "batch_sizes": BATCH_SIZES,
        "widths": WIDTHS,
        "decays": DECAYS,
        "lr_range": RATES,
        "pruner": f"median, startup {STARTUP_TRIALS}, warmup {WARMUP_STEPS}",
    }


def cells(plan: Plan) -> Sequence[Cell]:
    """The references, which take longest, and a study a task, seed and method."""
    references = [{"task": task, "method": REFERENCE, SEED: REFERENCE_SEED} for task in TASKS]
    return references + [
        {"task": task, "method": method, SEED: seed}
        for seed in plan.seed_range(full=10, quick=2)
        for task in TASKS
        for method in METHODS
    ]


def measure(cell: Cell, plan: Plan) -> Measured:
    """A study, and when it met which validation loss; or the reference's configurations."""
    size, seed = SIZES[plan.scale], int(cell[SEED])
    data = load_dataset(cell["task"], SPLIT)
    if cell["method"] == REFERENCE:
        return Measured(
            random_reference(
                data,
                seed,
                steps=size.steps,
                configurations=size.configurations,
                rates=size.rates,
            )
        )
    study, account = run_study(cell["method"], data, seed, steps=size.steps, budget=size.budget)
    return Measured([study_row(study, account)], history=[account.course])


def targets(rows: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Validation losses to reach, by task and name, from the reference alone."""
    reference = rows[rows["method"] == REFERENCE]
    return {
        (str(task), name): float(part["val_loss"].quantile(share))
        for task, part in reference.groupby("task", sort=False)
        for name, share in TARGETS.items()
    }


def steps_table(results: Results, budget: int) -> pd.DataFrame:
    """Steps to each target: a line per task, target, method and seed."""
    rows = results.rows.to_dict("records")
    return pd.DataFrame(
        {
            "task": task,
            "target": name,
            "val_loss": target,
            "method": search["method"],
            SEED: search[SEED],
            "steps": steps_to(results.epochs_of(run).to_dict("records"), target, budget),
        }
        for (task, name), target in targets(results.rows).items()
        for run, search in enumerate(rows)
        if search["task"] == task and search["method"] != REFERENCE
    )


def summary_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Median steps and the share of seeds that reach the target."""
    return (
        steps.groupby(["task", "target", "val_loss", "method"], sort=False)["steps"]
        .agg(
            median_steps="median",
            reached=lambda values: float(np.isfinite(values).mean()),
            seeds="size",
        )
        .reset_index()
    )


def ratio_table(steps: pd.DataFrame, budget: int) -> pd.DataFrame:
    """The race's steps over each other method's, by target; each task, then all of them."""
    tasks = list(dict.fromkeys(steps["task"]))

    def line(name: str, among: list[str], target: str, other: str) -> dict[str, Any]:
        def of(method: str) -> FloatArray:
            part = steps[(steps["target"] == target) & (steps["method"] == method)]
            wide = part.pivot(index="task", columns=SEED, values="steps")
            return wide.loc[among].to_numpy(dtype=np.float64)

        found = paired_ratio(of(RACE), of(other), budget)
        return {"task": name, "target": target, "method": RACE, "against": other, **found}

    groups = [(task, [task]) for task in tasks] + [(ALL, tasks)]
    return pd.DataFrame(
        line(name, among, target, other)
        for target in TARGETS
        for other in (TPE, CONSTANT)
        for name, among in groups
    )


def report(results: Results, plan: Plan) -> Report:
    """Medians, shares, paired ratios, and the best loss over the steps."""
    size, rows = SIZES[plan.scale], results.rows
    steps = steps_table(results, size.budget)
    summary, ratios = summary_table(steps), ratio_table(steps, size.budget)
    searches = rows[rows["method"] != REFERENCE]
    spent = (
        searches.groupby(["task", "method"], sort=False)[
            ["trials", "complete", "pruned", "race_steps", "steps", "val_loss"]
        ]
        .mean()
        .reset_index()
    )
    text = (
        f"Joint search of batch size, width, weight decay and optimizer; runs of about "
        f"{size.steps} steps, {size.budget} gradient steps a study (probes and pruned trials "
        f"included).\nTargets: validation losses of {size.configurations} random configurations, "
        f"each at its best of {len(size.rates)} rates; the one fixed as the measure is "
        f"{MAIN!r}.\nTPE's range of rates: {RATES[0]:g} to {RATES[1]:g}\n\n"
        f"Gradient steps to the target (inf: not within the budget)\n\n"
        f"{plain(records(summary.round(4)))}\n\n"
        f"Steps of {RACE!r} over those of the other: geometric mean over paired seeds, 95 % "
        "bootstrap (over seeds; over tasks too for 'all'); not reached counts as the budget\n\n"
        f"{plain(records(ratios.round(3)))}\n\nMean over seeds, per study\n\n"
        f"{plain(records(spent.round(3)))}"
    )
    wanted = ratios[(ratios["target"] == MAIN) & (ratios["task"] == ALL)]
    single = {f"ratio/{row['against']}": row["ratio"] for row in wanted.to_dict("records")}
    reference = rows[rows["method"] == REFERENCE].drop(columns=["curve"])
    tables = {
        "targets": summary,
        "steps": steps,
        "ratios": ratios,
        "spent": spent,
        "reference": reference.dropna(axis=1, how="all"),
    }
    return Report(text, tables, figures={"joint": figure(results, size.budget)}, summary=single)


def figure(results: Results, budget: int) -> Figure:
    """A panel a task: median of the best validation loss so far, quartiles as a band."""
    from matplotlib.figure import Figure

    rows, at = results.rows, np.linspace(0.0, budget, 301)
    aims = targets(rows)
    drawn = Figure(figsize=(5.2 * len(TASKS), 3.8), layout="constrained")
    for axes, task in zip(drawn.subplots(1, len(TASKS), squeeze=False)[0], TASKS, strict=True):
        for method, color in _COLORS.items():
            runs = rows[(rows["task"] == task) & (rows["method"] == method)].index
            courses = [results.epochs_of(int(run)).to_dict("records") for run in runs]
            if not courses:
                continue
            curves = np.stack([best_after(course, at) for course in courses])
            known = np.isfinite(curves).all(axis=0)
            low, middle, high = np.quantile(curves[:, known], [0.25, 0.5, 0.75], axis=0)
            axes.plot(at[known], middle, color=color, label=method, linewidth=1.3)
            axes.fill_between(at[known], low, high, color=color, alpha=0.18, linewidth=0)
        if (task, MAIN) in aims:
            axes.axhline(aims[task, MAIN], color="#24292f", linestyle="--", linewidth=0.8)
        axes.set_title(f"{task}: target (dashed) is the {MAIN} of random search", fontsize=9)
        axes.set_xlabel("gradient steps, probes included")
        axes.set_ylabel("best validation loss so far")
        axes.set_yscale("log")
        axes.legend(fontsize=8)
    return drawn


REPRODUCTION = Reproduction(
    name="joint-search",
    title="batch size, width, weight decay and optimizer by TPE; the rate by race or by TPE too",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
    by=("task", "method"),
)
