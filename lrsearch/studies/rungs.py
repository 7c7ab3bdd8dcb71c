"""Which rung of which ladder comes next: pure reading of a study's trials.

A *ladder* is one configuration (all parameters but the learning rate) tried at
``top * beta**rung`` for rung 0, 1, 2, ... until a trial completes or the range ends. It bears the
number of the trial that began it, so two workers never begin the same one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from lrsearch.studies.attributes import RUNG
from lrsearch.studies.owned_parameter import is_rate_range

ATTEMPTS_PER_RUNG = 3
"""A rung whose trials all failed is tried again, as the test never spoke. After this many failures
it counts as rejected: an objective that returns NaN at a large rate would else never get lower."""

_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


class Rung(NamedTuple):
    """A trial's place; ``rung`` is None where the ladder had none left in the range."""

    ladder: int
    rung: int | None


def read_rung(trial: FrozenTrial) -> Rung | None:
    """Return the place that ``trial`` has recorded, if any."""
    place = trial.user_attrs.get(RUNG)
    return None if place is None else Rung(place["ladder"], place["rung"])


@dataclass(frozen=True, slots=True)
class Scale:
    """The learning rates of a ladder.

    Args:
        lr_max: rate of rung 0; None for the upper end of the suggested range.
        beta: ratio of one rung to the one above it, in (0, 1).
    """

    lr_max: float | None
    beta: float

    def top(self, suggested: FloatDistribution) -> float:
        """Return the rate of rung 0, never above the suggested range."""
        return suggested.high if self.lr_max is None else min(self.lr_max, suggested.high)

    def rate(self, rung: int, suggested: FloatDistribution) -> float | None:
        """Return ``top * beta**rung``, or None if that lies below the suggested range."""
        rate = self.top(suggested) * self.beta**rung
        if rate >= suggested.low:
            return rate
        # 0.7 * 0.1 is below 0.07 by rounding alone.
        return suggested.low if math.isclose(rate, suggested.low, rel_tol=1e-12) else None


@dataclass(frozen=True, slots=True)
class Ladder:
    """One configuration and its trials, in order of their numbers."""

    number: int
    members: tuple[FrozenTrial, ...]

    def held(self) -> list[tuple[int, FrozenTrial]]:
        """Return the trials that hold a rung, each behind its rung."""
        places = ((read_rung(trial), trial) for trial in self.members)
        return [
            (place.rung, trial)
            for place, trial in places
            if place is not None and place.rung is not None
        ]

    def found(self) -> FrozenTrial | None:
        """Return the completed trial with the largest rate, if any."""
        completed = [pair for pair in self.held() if pair[1].state == TrialState.COMPLETE]
        return min(completed, key=lambda pair: pair[0])[1] if completed else None

    def undecided(self) -> bool:
        """Whether a trial that holds a rung has yet to end."""
        return any(trial.state in _UNFINISHED for _, trial in self.held())

    def next_rung(self) -> int:
        """Return the lowest rung to be tried again, else the one after the last."""
        states: dict[int, list[TrialState]] = {}
        for rung, trial in self.held():
            states.setdefault(rung, []).append(trial.state)
        again = [
            rung
            for rung, ends in states.items()
            if len(ends) < ATTEMPTS_PER_RUNG and all(end == TrialState.FAIL for end in ends)
        ]
        return min(again) if again else max(states, default=-1) + 1


def read_ladders(trials: Iterable[FrozenTrial]) -> list[Ladder]:
    """Return the ladders of a study, oldest first."""
    members: dict[int, list[FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda each: each.number):
        place = read_rung(trial)
        if place is not None:
            members.setdefault(place.ladder, []).append(trial)
    return [Ladder(number, tuple(members[number])) for number in sorted(members)]


@dataclass(frozen=True, slots=True)
class Search:
    """What the trials of a study say about the search for ``lr_name``.

    Args:
        trials: all trials of the study.
        lr_name: name of the learning rate.
        scale: its rungs.
    """

    trials: Sequence[FrozenTrial]
    lr_name: str
    scale: Scale

    def is_alone(self) -> bool:
        """Whether the learning rate is the only parameter that is free to vary."""
        asked = [
            (name, each) for trial in self.trials for name, each in trial.distributions.items()
        ]
        return any(name == self.lr_name for name, _ in asked) and all(
            name == self.lr_name or each.single() for name, each in asked
        )

    def choose(self, trial_number: int, *, one_ladder: bool) -> Rung:
        """Return the place of the new trial ``trial_number``.

        The oldest ladder that has neither a completed trial nor come to the end of the range goes
        on: so a rung that failed late is not lost. Without such a ladder a new one begins; but
        where ``one_ladder`` would repeat the rates of one that is still being tried, the trial
        gets no rung.
        """
        unfound = [ladder for ladder in read_ladders(self.trials) if ladder.found() is None]
        for ladder in unfound:
            if self._has_room(ladder):
                return Rung(ladder.number, ladder.next_rung())
        if one_ladder:
            for ladder in unfound:
                if ladder.undecided():
                    return Rung(ladder.number, None)
        return Rung(trial_number, 0)

    def verdict(self) -> str | None:
        """Return why the search for the rate is over, or None while it goes on."""
        ladders = read_ladders(self.trials)
        for ladder in ladders:
            found = ladder.found()
            if found is not None:
                rate = found.params.get(self.lr_name)
                return f"trial {found.number} completed with {self.lr_name}={rate!r}"
        if not ladders or any(each.undecided() or self._has_room(each) for each in ladders):
            return None
        last = ladders[-1]
        suggested = self._range(last)
        return (
            f"no {self.lr_name} from the suggested range is left: rung {last.next_rung()} of "
            f"beta={self.scale.beta} lies below {suggested.low if suggested else None!r}"
        )

    def _has_room(self, ladder: Ladder) -> bool:
        suggested = self._range(ladder)
        return suggested is None or self.scale.rate(ladder.next_rung(), suggested) is not None

    def _range(self, ladder: Ladder) -> FloatDistribution | None:
        """Return the newest range that was suggested, on this ladder if it has one."""
        for trial in (*reversed(ladder.members), *reversed(self.trials)):
            suggested = trial.distributions.get(self.lr_name)
            if is_rate_range(suggested):
                return suggested
        return None
