"""Short tries of a few multipliers, and which was the best: pure reading of a study's trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any, NamedTuple

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lrsearch.studies.attributes import MULTIPLIER


class Choice(NamedTuple):
    """A trial's multiplier; ``place`` in the list of multipliers marks a try."""

    multiplier: float
    place: int | None

    def as_attribute(self) -> dict[str, Any]:
        """As it stands in the storage."""
        return {"multiplier": self.multiplier, "try": self.place}


def read_choice(trial: FrozenTrial) -> Choice | None:
    """What ``trial`` has recorded, if anything."""
    kept = trial.user_attrs.get(MULTIPLIER)
    return Choice(kept["multiplier"], kept["try"]) if isinstance(kept, dict) else None


def is_try(trial: FrozenTrial) -> bool:
    """Whether ``trial`` is a try."""
    choice = read_choice(trial)
    return choice is not None and choice.place is not None


def choose(
    trials: Sequence[FrozenTrial],
    trial: FrozenTrial,
    multipliers: Sequence[float],
    *,
    lr_name: str,
    direction: StudyDirection,
) -> Choice:
    """The multiplier of a new trial: one that nobody tries yet, else the best try's.

    Running trials with a lower number that have recorded nothing yet will take the first places
    that are free, so workers that ask at the same time get different ones. Where no try has given
    a finite value (yet), the trial is one more try.

    Args:
        trials: all trials of the study.
        trial: the new one.
        multipliers: to choose from.
        lr_name: of the learning rate; trials whose rate was enqueued take no place.
        direction: of the study.
    """
    others = [each for each in trials if each.number != trial.number]
    taken = {choice.place for each in others if (choice := read_choice(each)) is not None}
    free = [place for place in range(len(multipliers)) if place not in taken]
    ahead = sum(
        each.number < trial.number
        and each.state == TrialState.RUNNING
        and read_choice(each) is None
        and lr_name not in each.system_attrs.get("fixed_params", {})
        for each in others
    )
    if ahead < len(free):
        return Choice(multipliers[free[ahead]], free[ahead])
    best = best_multiplier(others, direction)
    if best is not None:
        return Choice(best, None)
    place = trial.number % len(multipliers)
    return Choice(multipliers[place], place)


def best_multiplier(trials: Iterable[FrozenTrial], direction: StudyDirection) -> float | None:
    """The multiplier of the best try that has ended; None if there is none with a finite value.

    A try's value is the last that it reported, or the final one if it reported nothing. Tries that
    failed lose, and so do those that ended after fewer reports than the longest.
    """
    ended = (TrialState.PRUNED, TrialState.COMPLETE)
    scores: list[tuple[int, float, float]] = []  # reports, value (less is better), multiplier
    for trial in sorted(trials, key=lambda each: each.number):
        choice = read_choice(trial)
        if choice is None or choice.place is None or trial.state not in ended:
            continue
        reports = trial.intermediate_values
        value = reports[max(reports)] if reports else trial.value
        if value is not None and isfinite(value):
            less = -value if direction == StudyDirection.MAXIMIZE else value
            scores.append((len(reports), less, choice.multiplier))
    longest = max((count for count, _, _ in scores), default=0)
    comparable = [score for score in scores if score[0] == longest]
    return min(comparable, key=lambda score: score[1])[2] if comparable else None
