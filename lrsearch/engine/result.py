"""What a study found, and its tables."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from lrsearch.engine.methods import LR
from lrsearch.studies.attributes import PVALUE, REASON, WINDOW_PREFIX
from lrsearch.studies.rungs import find_answer
from lrsearch.training.task import TrainingTask
from lrsearch.windows import WindowStats

# Trial attributes of the engine, beside those that samplers and recorders write.
OUTCOME = "lrsearch:outcome"
STEPS = "lrsearch:steps"
SECONDS = "lrsearch:seconds"
FINAL_RATE = "lrsearch:lr_final"
DEVICE = "lrsearch:device"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a study found.

    Attributes:
        task, method, mode, seed: what was asked.
        metric, direction: what ``value`` is, and which way it improves.
        lr: chosen learning rate, at which the chosen trial began; NaN if none was completed.
        value: test metric of the chosen trial; the choice is made on the validation loss.
        oracle_value: best test metric of any trial: what hindsight would have chosen.
        val_loss, train_loss: of the chosen trial.
        steps: gradient steps of all trials, pruned and failed ones and a race's probes included,
            and a third of a step for each forward pass that a race began with.
        seconds: wall time of the study.
        stop_reason: why it ended.
        study: the Optuna study.
        trials: one row per trial.
        windows: one row per judged window ("exptest"), or probe of a race.
        start: what the search's first rate rests on, "race", "bound" or "lipschitz".
        start_note: why it is not what was asked for; "" if it is.
        run_id, tracking_uri: the tracker's run of the study ("" if none).
    """

    task: str
    method: str
    mode: str
    seed: int
    metric: str
    direction: str
    lr: float
    value: float
    oracle_value: float
    val_loss: float
    train_loss: float
    steps: int
    seconds: float
    stop_reason: str
    study: optuna.Study
    trials: pd.DataFrame
    windows: pd.DataFrame
    run_id: str
    tracking_uri: str
    start: str = "bound"
    start_note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The result as plain JSON: numbers that are not finite are null."""
        return {
            "task": self.task,
            "method": self.method,
            "mode": self.mode,
            "seed": self.seed,
            "start": self.start,
            "start_note": self.start_note,
            "metric": self.metric,
            "direction": self.direction,
            "lr": finite(self.lr),
            "value": finite(self.value),
            "oracle_value": finite(self.oracle_value),
            "val_loss": finite(self.val_loss),
            "train_loss": finite(self.train_loss),
            "steps": self.steps,
            "seconds": self.seconds,
            "stop_reason": self.stop_reason,
            "trials": records(self.trials),
            "windows": records(self.windows),
            "run_id": self.run_id,
            "tracking_uri": self.tracking_uri,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """The trial that a study chooses, and what hindsight would have; NaN and None if none."""

    lr: float
    value: float
    oracle_value: float
    val_loss: float
    train_loss: float
    number: int | None = None


def choose(task: TrainingTask, study: optuna.Study) -> Choice:
    """The answer of the study's ladder, if it has one with a completed trial.

    Else (a grid; trials whose rate was enqueued) the completed trial of the smallest validation
    loss, the first of equals.
    """
    nan = float("nan")
    trials = study.get_trials(deepcopy=False)
    done = [t for t in trials if _outcome(t) is not None]
    finished = [t for t in done if t.state == TrialState.COMPLETE and t.value is not None]
    if not finished:
        return Choice(nan, nan, nan, nan, nan)
    best = find_answer(trials)
    if best is None or best not in finished:
        best = min(finished, key=lambda t: t.value if t.value is not None else float("inf"))
    tests = [float(t.user_attrs[OUTCOME]["test_metric"]) for t in finished]
    outcome = best.user_attrs[OUTCOME]
    return Choice(
        lr=float(best.params[LR]),
        value=float(outcome["test_metric"]),
        oracle_value=max(tests) if task.direction == "maximize" else min(tests),
        val_loss=float(outcome["val_loss"]),
        train_loss=float(outcome["train_loss"]),
        number=best.number,
    )


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row per trial: rate, state, reason, p-value, steps, losses, metrics."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        outcome = _outcome(trial) or {}
        rows.append(
            {
                "number": trial.number,
                "lr": trial.params.get(LR),
                "state": trial.state.name,
                "reason": trial.user_attrs.get(REASON, ""),
                "pvalue": trial.user_attrs.get(PVALUE),
                "steps": trial.user_attrs.get(STEPS, 0),
                "seconds": trial.user_attrs.get(SECONDS),
                "lr_final": trial.user_attrs.get(FINAL_RATE),
                "val_loss": outcome.get("val_loss"),
                "train_loss": outcome.get("train_loss"),
                "val_metric": outcome.get("val_metric"),
                "test_metric": outcome.get("test_metric"),
            }
        )
    return pd.DataFrame(rows)


def total_steps(study: optuna.Study) -> int:
    """Gradient steps of all trials, whatever became of them."""
    return sum(int(t.user_attrs.get(STEPS, 0)) for t in study.get_trials(deepcopy=False))


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as plain JSON."""
    return [
        {str(key): finite(value) for key, value in row.items()}
        for row in table.astype(object).to_dict(orient="records")
    ]


def finite(value: Any) -> Any:
    """The value itself, or None for a number that JSON has no word for."""
    return None if isinstance(value, float) and not isfinite(value) else value


def _outcome(trial: FrozenTrial) -> dict[str, Any] | None:
    outcome = trial.user_attrs.get(OUTCOME)
    return outcome if isinstance(outcome, dict) else None


def windows_row(trial: int, window: WindowStats) -> dict[str, Any]:
    """A judged window as a row of the windows table."""
    return {"trial": trial, **window.as_dict(), "log10_pvalue": window.log10_pvalue}


def window_rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    """The windows that a trial has told its study: few fields, and thinned out."""
    names = {"F": "f_statistic", "p": "pvalue", "n_eff": "n_effective", "loss": "loss_mean"}
    kept = {
        int(key.removeprefix(WINDOW_PREFIX)): value
        for key, value in trial.user_attrs.items()
        if key.startswith(WINDOW_PREFIX)
    }
    return [
        {"trial": trial.number, "index": index}
        | {names.get(key, key): value for key, value in kept[index].items()}
        for index in sorted(kept)
    ]
