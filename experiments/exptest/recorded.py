"""What each mode decides on the authors' own recorded runs (5 of MNIST, 5 of California Housing).

A housing record holds two rungs: the first five or six steps at the bound, and, from new weights
on, all the rest at 0.33 of it. The fifth one's first rung rises from 5.6 to 1e17.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from math import e, sqrt
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.exptest.methods import MODES, NOTEBOOK
from experiments.exptest.notebook_fit import notebook_f_test
from experiments.harness.cells import Cell, Measured, Row
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from lrsearch.cli.tables import plain, replayed
from lrsearch.controllers.replay import search_verdict
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.figures import draw_replay
from lrsearch.engine.recorded import Replay, replay_curve
from lrsearch.errors import MissingDataError
from lrsearch.tracking import RecordedCurve

FILE: Final = "exptest_recorded.npz"
MNIST_BOUND: Final = 0.0494  # 2 / lambda_max, lambda_max = 40.488
# From the windows of all five records: round(2 sqrt(2) L0 / (bound e)) is 6, 5, 5, 6, 6.
HOUSING_BOUND: Final = 0.9867
RUNGS: Final = (1.0, 0.33)
# The correction is not recorded, so the notebook's test is tried on windows from w up.
NOTEBOOK_WINDOWS: Final = (51, 100, 200, 400, 800, 1600)
DIVERGING: Final = 4
# What a user may choose; the diverging record must be accepted under none of it.
SWEEP: Final = {
    "mode": ("robust", "paper"),
    "alpha": (0.001, 0.01, 0.05, 0.2, 0.5, 0.9),
    "lr": (1e-3, 0.01, 0.1, 0.3, 0.9867, 1.01, 3.0, 10.0),
    "full_batch": (True, False),
    "total_steps": (None, 50, 1000, 10_000),
}


def load(data_dir: str | None) -> dict[str, NDArray[np.float64]]:
    """The records: "mnist" of shape (5, 9375), "housing" of shape (5, 10000).

    Raises:
        MissingDataError: if the file is not at hand; it is in no public data set.
    """
    places = [data_dir, os.environ.get("LRSEARCH_DATA")]
    for place in places:
        if place and (path := Path(place, FILE)).is_file():
            with np.load(path) as archive:
                return {name: np.asarray(archive[name], float) for name in ("mnist", "housing")}
    raise MissingDataError(f"no {FILE}: name its folder by --data-dir or LRSEARCH_DATA")


def restart_of(curve: NDArray[np.float64]) -> int:
    """Step at which a housing record starts over: the notebook's window at the bound."""
    return round(2.0 * sqrt(2.0) * float(curve[0]) / (HOUSING_BOUND * e))


def cells(plan: Plan) -> Sequence[Cell]:
    """One a record."""
    return [{"data": name, "run": run} for name in ("mnist", "housing") for run in range(5)]


def measure(cell: Cell, plan: Plan) -> Measured:
    """What every mode says of one record."""
    curve = load(plan.data_dir)[cell["data"]][cell["run"]]
    if cell["data"] == "mnist":
        rows = [_notebook_windows(curve)]
        rows += [_row("bound", _replay(curve, mode, MNIST_BOUND, False)) for mode in MODES[1:]]
        return Measured(rows)
    restart = restart_of(curve)
    rows = _notebook_rungs(curve, restart)
    for mode, (rung, losses) in product(MODES[1:], enumerate((curve, curve[restart:]))):
        rate = HOUSING_BOUND * RUNGS[rung]
        rows.append(_row(_rung(rung), _replay(losses, mode, rate, True)))
    if cell["run"] == DIVERGING:
        rows.append(_sweep_row(curve))
    return Measured(rows)


def _sweep_row(curve: NDArray[np.float64]) -> Row:
    tried, accepted = sweep(curve)
    return {
        "mode": "both",
        "rung": "any rate",
        "verdict": f"accepted {accepted} of {tried}",
        "step": None,
        "pvalue": None,
        "says": "any alpha, rate, batch kind and budget",
        "accepted": accepted,
    }


def sweep(curve: NDArray[np.float64]) -> tuple[int, int]:
    """How many settings are tried on a record's first rung, and how many accept it."""
    accepted, tried = 0, 0
    for choice in product(*SWEEP.values()):
        options: dict[str, Any] = dict(zip(SWEEP, choice, strict=True))
        rate = options.pop("lr")
        decision = search_verdict(ExpTestSettings(**options), curve, lr=rate)
        tried += 1
        accepted += decision is not None and decision.kind == "accept"
    return tried, accepted


def _replay(curve: NDArray[np.float64], mode: str, rate: float, full_batch: bool) -> Replay:
    settings = ExpTestSettings(
        mode="paper" if mode == "paper" else "robust",
        full_batch=full_batch,
        total_steps=len(curve),
    )
    return replay_curve(RecordedCurve(range(len(curve)), curve.tolist()), settings, lr=rate)


def _row(rung: str, replay: Replay) -> Row:
    window = replay.deciding
    return {
        "mode": replay.settings.mode,
        "rung": rung,
        "verdict": replay.verdict,
        "step": None if window is None else window.last_step,
        "pvalue": None if window is None else window.pvalue,
        "says": replayed(replay),
        "accepted": int(replay.verdict == "accepted"),
    }


def _rung(number: int) -> str:
    return f"{RUNGS[number]:g} x bound"


def _notebook_windows(curve: NDArray[np.float64]) -> Row:
    pvalues = [notebook_f_test(curve[:window])[1] for window in NOTEBOOK_WINDOWS]
    worst = max(pvalues)
    return {
        "mode": NOTEBOOK,
        "rung": "bound",
        "verdict": "accepted" if worst < 0.05 else "rejected",
        "step": None,
        "pvalue": worst,
        "says": f"largest p of the windows {', '.join(map(str, NOTEBOOK_WINDOWS))}: {worst:.2g}",
        "accepted": int(worst < 0.05),
    }


def _notebook_rungs(curve: NDArray[np.float64], restart: int) -> list[Row]:
    rows = []
    for rung, losses in enumerate((curve[:restart], curve[restart:])):
        window = restart
        if rung:
            window = round(2.0 * sqrt(2.0) * float(curve[0]) / (RUNGS[1] * HOUSING_BOUND * e))
        try:
            pvalue = notebook_f_test(losses[:window])[1]
        except (RuntimeError, TypeError, ValueError) as error:
            pvalue, why = float("nan"), f"curve_fit ends the training: {type(error).__name__}"
        else:
            why = f"F-test on {window} losses"
        rows.append(
            {
                "mode": NOTEBOOK,
                "rung": _rung(rung),
                "verdict": "accepted" if pvalue < 0.05 else "rejected",
                "step": window - 1,
                "pvalue": pvalue,
                "says": why,
                "accepted": int(pvalue < 0.05),
            }
        )
    return rows


def report(results: Results, plan: Plan) -> Report:
    """A table of verdicts, and the records drawn with windows, fits and decisions."""
    rows = results.rows.drop(columns=["curve"])
    shown = rows[["data", "run", "mode", "rung", "verdict", "step", "pvalue", "says"]]
    lines = [
        {str(key): ("" if value != value else value) for key, value in row.items()}
        for row in shown.to_dict("records")
    ]
    for line in lines:
        line["step"] = "" if line["step"] == "" else str(int(line["step"]))
        line["pvalue"] = "" if line["pvalue"] == "" else f"{line['pvalue']:.2g}"
    first = rows[(rows["data"] == "housing") & (rows["rung"] != _rung(1))]
    wrong = first.groupby("mode")["accepted"].sum()
    counts = ", ".join(f"{mode} {count}" for mode, count in wrong.items())
    text = (
        "ExpTest's decisions on the authors' recorded runs\n\n"
        f"{plain(lines)}\n\n"
        f"first housing rungs (all five diverge) accepted: {counts}"
    )
    records = load(plan.data_dir)
    figures = {}
    for name, run in (("mnist", 0), ("housing", 0), ("housing", 4)):
        replay = _replay(records[name][run], "robust", *_rate_of(name))
        figures[f"{name}_{run}"] = draw_replay(
            replay, title=f"{name}, recorded run {run}\n{replayed(replay)}"
        )
    summary = {f"first_housing_rungs_accepted/{mode}": float(n) for mode, n in wrong.items()}
    return Report(text, {"verdicts": rows}, figures, summary)


def _rate_of(name: str) -> tuple[float, bool]:
    return (MNIST_BOUND, False) if name == "mnist" else (HOUSING_BOUND, True)


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    return {"mnist_bound": MNIST_BOUND, "housing_bound": HOUSING_BOUND}


REPRODUCTION = Reproduction(
    name="exptest-recorded",
    title="each mode's decisions on the ten loss curves that the authors of [E] recorded",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
)
