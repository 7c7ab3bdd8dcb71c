"""Which rung of which ladder comes next: pure reading of a study's trials.

A *ladder* is one configuration (all parameters but the learning rate) tried at
``top * beta**rung`` for rung 0, 1, 2, ... until a trial completes or the range ends. It bears the
number of the trial that began it, so two workers never begin the same one.

One worker climbs down rung by rung, and the first rung that completes is the answer. Several try
rungs below one that still runs, and must answer the same: a completed trial counts once every
higher rung was rejected, and a trial that was pruned because a higher rung passed its test says
nothing of its own rate, so its rung is tried again should the higher one come to grief.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from optuna.distributions import FloatDistribution
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from lrsearch.studies.attributes import ACCEPTED, DOMINATED, RUNG
from lrsearch.studies.owned_parameter import is_rate_range

ATTEMPTS_PER_RUNG = 3
"""A rung whose trials all failed is tried again, as the test never spoke. After this many failures
it counts as rejected: an objective that returns NaN at a large rate would else never get lower."""

_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


class Rung(NamedTuple):
    """A trial's place; ``rung`` is None where the ladder had none left for it."""

    ladder: int
    rung: int | None


class RungState(Enum):
    """What the trials on a rung have said of its rate, together."""

    OPEN = "open"
    """One of them has yet to end."""

    AGAIN = "again"
    """Nothing: they failed, or gave way to a higher rung. The rung is tried again."""

    REJECTED = "rejected"
    COMPLETE = "complete"


def read_rung(trial: BaseTrial) -> Rung | None:
    """Return the place that ``trial`` has recorded, if any."""
    place = trial.user_attrs.get(RUNG)
    return None if place is None else Rung(place["ladder"], place["rung"])


def is_accepted(trial: FrozenTrial) -> bool:
    """Whether ``trial`` runs and has passed its test."""
    return trial.state == TrialState.RUNNING and _is_own(trial, ACCEPTED)


def gave_way(trial: FrozenTrial) -> bool:
    """Whether ``trial`` was pruned because a higher rung was accepted: its rate was not judged."""
    return trial.state == TrialState.PRUNED and _is_own(trial, DOMINATED)


def was_queued(trial: FrozenTrial) -> bool:
    """Whether ``trial`` was enqueued or is a retry, so that its number is older than its start."""
    return "fixed_params" in trial.system_attrs or "failed_trial" in trial.system_attrs


def is_spare(trial: FrozenTrial) -> bool:
    """Whether ``trial`` waits for a worker, and for a rung as a new one does.

    Its worker died before it took one.
    """
    waiting = trial.state == TrialState.WAITING
    return waiting and read_rung(trial) is None and not was_queued(trial)


def _is_own(trial: FrozenTrial, name: str) -> bool:
    """Whether ``trial`` has written that attribute itself: a retry gets those of the dead one."""
    kept = trial.user_attrs.get(name)
    return isinstance(kept, dict) and kept.get("trial") == trial.number


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

    def states(self) -> dict[int, RungState]:
        """Return what became of each rung, the highest rate first."""
        trials: dict[int, list[FrozenTrial]] = {}
        for rung, trial in self.held():
            trials.setdefault(rung, []).append(trial)
        return {rung: _state_of(trials[rung]) for rung in sorted(trials)}

    def found(self) -> FrozenTrial | None:
        """Return the completed trial below which one worker would never have got, if any."""
        for rung, state in self.states().items():
            if state is RungState.COMPLETE:
                return self._completed(rung)
            if state is not RungState.REJECTED:
                return None
        return None

    def best(self) -> FrozenTrial | None:
        """Return the completed trial with the largest rate, final or not."""
        done = [rung for rung, state in self.states().items() if state is RungState.COMPLETE]
        return self._completed(done[0]) if done else None

    def leader(self) -> tuple[int, FrozenTrial] | None:
        """Return the highest rung with an accepted or a completed trial, and that trial."""
        states = self.states()
        able = [
            (rung, trial)
            for rung, trial in self.held()
            if trial.state == TrialState.COMPLETE
            or (is_accepted(trial) and states[rung] is not RungState.REJECTED)
        ]
        return min(able, key=lambda pair: pair[0]) if able else None

    def undecided(self) -> bool:
        """Whether a trial that holds a rung has yet to end."""
        return RungState.OPEN in self.states().values()

    def next_rung(self) -> int | None:
        """Return the lowest rung to be tried again, else the one after the last.

        None if that lies below an accepted or completed one.
        """
        states, leader = self.states(), self.leader()
        again = [rung for rung, state in states.items() if state is RungState.AGAIN]
        rung = again[0] if again else max(states, default=-1) + 1
        return rung if leader is None or rung < leader[0] else None

    def _completed(self, rung: int) -> FrozenTrial:
        return next(
            trial
            for place, trial in self.held()
            if place == rung and trial.state == TrialState.COMPLETE
        )


def _state_of(trials: Sequence[FrozenTrial]) -> RungState:
    """Return what the trials of one rung say together."""
    states = [trial.state for trial in trials]
    if TrialState.COMPLETE in states:
        return RungState.COMPLETE
    if any(trial.state == TrialState.PRUNED and not gave_way(trial) for trial in trials):
        return RungState.REJECTED
    if any(state in _UNFINISHED for state in states):
        return RungState.OPEN
    given_up = states.count(TrialState.FAIL) >= ATTEMPTS_PER_RUNG
    return RungState.REJECTED if given_up else RungState.AGAIN


def read_ladders(trials: Iterable[FrozenTrial]) -> list[Ladder]:
    """Return the ladders of a study, oldest first."""
    members: dict[int, list[FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda each: each.number):
        place = read_rung(trial)
        if place is not None:
            members.setdefault(place.ladder, []).append(trial)
    return [Ladder(number, tuple(members[number])) for number in sorted(members)]


def find_answer(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial that the oldest ladder with an answer has found.

    Where the budget ended before any ladder was decided: the completed trial with the largest rate
    of the oldest ladder that has one. None if no trial on a ladder was completed.
    """
    ladders = read_ladders(trials)
    answers = [*(each.found() for each in ladders), *(each.best() for each in ladders)]
    return next((answer for answer in answers if answer is not None), None)


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

        The oldest ladder that has neither an answer nor come to the end of the range goes on: so
        a rung that failed late is not lost. It goes on at a rung to be tried again, else below
        the last; never below one that was accepted or completed. Without such a ladder a new one
        begins; but where ``one_ladder`` would repeat the rates of one that is still being tried,
        the trial gets no rung.
        """
        place = self._free_place(one_ladder=one_ladder)
        return Rung(trial_number, 0) if place is None else place

    def waits(self) -> bool:
        """Whether a new trial would be of no use now, but may be later.

        True in a study of the rate alone that is not over, but whose every rung that makes sense
        is being tried: those below a rung that was accepted may be needed yet, should it come to
        grief. A queued trial is of use, but for one that would take a rung as a new one does;
        trials that have yet to record their rung are not counted, since their worker may have died.
        While it is True, a trial on a ladder runs.
        """
        if not self.is_alone() or self.verdict() is not None:
            return False
        if any(each.state == TrialState.WAITING and not is_spare(each) for each in self.trials):
            return False
        place = self._free_place(one_ladder=True)
        return place is not None and place.rung is None

    def verdict(self) -> str | None:
        """Return why the search for the rate is over, or None while it goes on."""
        ladders = read_ladders(self.trials)
        for ladder in ladders:
            found = ladder.found()
            if found is not None:
                rate = found.params.get(self.lr_name)
                return f"trial {found.number} completed with {self.lr_name}={rate!r}"
            if ladder.undecided() or self._free_rung(ladder) is not None:
                return None
        if not ladders:
            return None
        last = ladders[-1]
        suggested = self._range(last)
        return (
            f"no {self.lr_name} from the suggested range is left: rung {last.next_rung()} of "
            f"beta={self.scale.beta} lies below {suggested.low if suggested else None!r}"
        )

    def _free_place(self, *, one_ladder: bool) -> Rung | None:
        """Return the next place on the ladders that there are; None if a new one is to begin."""
        for ladder in read_ladders(self.trials):
            if ladder.found() is not None:
                continue
            rung = self._free_rung(ladder)
            if rung is not None or (one_ladder and ladder.undecided()):
                return Rung(ladder.number, rung)
        return None

    def _free_rung(self, ladder: Ladder) -> int | None:
        """Return the ladder's next rung, or None if it has none inside the range."""
        rung, suggested = ladder.next_rung(), self._range(ladder)
        if rung is None or suggested is None:
            return rung
        return rung if self.scale.rate(rung, suggested) is not None else None

    def _range(self, ladder: Ladder) -> FloatDistribution | None:
        """Return the newest range that was suggested, on this ladder if it has one."""
        for trial in (*reversed(ladder.members), *reversed(self.trials)):
            suggested = trial.distributions.get(self.lr_name)
            if is_rate_range(suggested):
                return suggested
        return None
