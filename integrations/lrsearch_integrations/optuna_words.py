"""What an Optuna study and its trials say of themselves, in a tracker's words."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from optuna import Study
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from lrsearch.tracking import RunStatus

if TYPE_CHECKING:
    import pandas as pd

STATUS: Final[dict[TrialState, RunStatus]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
NUMBER: Final = "lrsearch.trial_number"


def study_key(study: Study) -> str:
    """Return a name that every process gives this study, and no other study has.

    It comes from the study's name and the moment at which its first trial began, not from the
    storage's address: that may differ from worker to worker, and a study that was deleted leaves
    its address, its name and its id to the next one.
    """
    return _digest([study.study_name, _text(first_start(study))])


def trial_key(study: str, number: int, start: datetime | None) -> str:
    """Return a trial's name within a study of the key ``study``."""
    return f"{study}-{number}-{_digest([_text(start)])[:8]}"


def first_start(study: Study) -> datetime | None:
    """When the first trial began; None if none has."""
    trials = study.get_trials(deepcopy=False)
    first = min(trials, key=lambda trial: trial.number, default=None)
    return None if first is None else first.datetime_start


def milliseconds_of(moment: datetime | None) -> int | None:
    """A storage's local time, as stores of runs count it."""
    return None if moment is None else int(moment.timestamp() * 1000)


def value_names(study: Study) -> list[str]:
    """How the values of a trial are called."""
    count = len(study.directions)
    return study.metric_names or (
        ["value"] if count == 1 else [f"values_{k}" for k in range(count)]
    )


def trial_values(study: Study, trial: FrozenTrial) -> dict[str, float]:
    """A finished trial's values.

    A pruned trial has none: Optuna gives it its last intermediate value, which would look best in a
    table of runs whenever a loss falls later or an accuracy rises early.
    """
    if trial.state is not TrialState.COMPLETE:
        return {}
    return dict(zip(value_names(study), trial.values, strict=False))


def trial_tags(trial: FrozenTrial) -> dict[str, object]:
    """What else is known of a trial: its user attributes, under their own names, and its space."""
    space = {
        name: json.loads(distribution_to_json(each)) for name, each in trial.distributions.items()
    }
    return {
        **_allowed(trial.user_attrs),
        NUMBER: trial.number,
        "lrsearch.distributions": json.dumps(space, ensure_ascii=False),
    }


def study_tags(study: Study) -> dict[str, object]:
    """What is known of a study before its first trial."""
    return {
        **_allowed(study.user_attrs),
        "lrsearch.study": study.study_name,
        "lrsearch.method": type(study.sampler).__name__,
        "lrsearch.sampler": type(study.sampler).__name__,
        "lrsearch.pruner": type(study.pruner).__name__,
        "lrsearch.direction": ", ".join(each.name.lower() for each in study.directions),
    }


def counts(trials: list[FrozenTrial]) -> dict[str, int]:
    """How many trials are in each state."""
    found = Counter(trial.state for trial in trials)
    return {f"lrsearch.trials_{state.name.lower()}": found[state] for state in TrialState}


def best(study: Study) -> tuple[dict[str, float], dict[str, object]]:
    """The best value so far, and tags that say which trial has it; of several objectives, how many.

    Returns:
        Metrics and tags; both empty while no trial is complete.
    """
    if len(study.directions) > 1:
        return {}, {"lrsearch.best_trials": len(study.best_trials)}
    try:
        trial = study.best_trial
    except ValueError:  # none is complete, or none keeps the constraints
        return {}, {}
    params = json.dumps(trial.params, default=str, ensure_ascii=False)
    return (
        {f"best_{value_names(study)[0]}": trial.values[0]},
        {"lrsearch.best_trial": trial.number, "lrsearch.best_params": params},
    )


def table(study: Study) -> pd.DataFrame:
    """A row for each trial; durations in seconds."""
    frame: pd.DataFrame = study.trials_dataframe()
    if "duration" in frame:
        frame["duration"] = frame["duration"].dt.total_seconds()
    return frame


def _allowed(attributes: dict[str, object]) -> dict[str, object]:
    """Attributes that would not overwrite what a tracker itself keeps under such names."""
    own = ("mlflow.parentRunId", "mlflow.runName", "lrsearch.trial_uid", "lrsearch.kind")
    return {name: value for name, value in attributes.items() if name not in own}


def _text(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat()


def _digest(parts: list[str]) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()[:32]
