"""The race of rungs: which rate is worth a training run?

Rungs are tried from the same weights on the same batches, each for a short probe, so that their
losses are compared pair by pair. The bracket grows upward while the highest rung is the best, and
downward while the lowest is; it ends when the best one has a worse rung on both sides. A rung that
has not fallen yet decides nothing: where none has, the highest that hold are given more steps.

A constant rate ends in its own noise, and the run that the race is for does not: its rate falls to
0. So the best rung and those beside it are brought to their *ends* too, with a tail as the run has
it, and the smallest loss of rows held back wins. Where that loss has hardly fallen, probes of twice
the steps are compared. Of two rungs that are next to equal the lower rate is trained: what is too
high for a run shows late.

Where batches cannot be drawn again (a user's own loop), the same comparisons are made between
losses on different batches, at constant rates. The tests hold there too, for they take the noise of
the differences from the differences, but that noise is larger and they tell less. What they cannot
tell must not end the race at a rate that is far too low: the highest rung has to be shown to be
worse, and of those that are level the one with the smallest loss wins, not the lowest. A race that
starts at a rate that may be far off leaps: its strides double until the best rung has rungs on both
sides, and the gaps that this leaves are halved.

Everything here is a pure function of what the probes have shown, in units of the ladder: the rate
of rung k is ``first * beta**k``, and k may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite, log
from typing import TypeAlias

from lrsearch.controllers.rungs import FALL, Probe, compare, has_fallen, has_risen, is_calm, leader
from lrsearch.errors import (
    InvalidArgumentError,
    require_at_least,
    require_in_open_unit_interval,
    require_positive,
)
from lrsearch.stats.pairing import FEWEST_PAIRS, paired_test

# Rungs that are given more steps where none has fallen.
SLOW_RUNGS = 3
# Rungs further from the first than this are not tried: 20 decades at beta = 0.33.
FURTHEST = 42
# Where the end's loss has fallen by less, in logs, longer probes are compared: up to so many times
# their share of the run.
SURE = 0.3
LONGEST_ENDS = 4
# One that has fallen by less has not fallen.
FALLEN = 0.05


@dataclass(frozen=True, slots=True)
class RaceSettings:
    """How a race is run.

    Attributes:
        total_steps: of the training run that the race is for.
        beta: ratio of one rung to the one above, in (0, 1).
        alpha: level of the tests, in (0, 1).
        share: of ``total_steps``, for a probe and its tail.
        fewest: steps of the two at least.
        tail: share of them over which the rate falls to 0; 0: rungs are compared at their constant
            rates alone. It takes ``replays``.
        kept: a rung below the winner that keeps this share of its fall of the log loss is trained
            instead; 1: none is.
        patience: share of ``total_steps`` that a rung is waited for while none has fallen.
        most: share of ``total_steps`` that all probes together may take; two probes at least.
        first_rung: the rung that is tried first.
        leaps: whether strides double at the ends of the ladder.
        replays: whether all rungs meet the same batches, and one that is given more steps goes on
            where it stopped; else they meet different ones, and it starts over.
    """

    total_steps: int
    beta: float = 0.33
    alpha: float = 0.05
    share: float = 0.05
    fewest: int = 8
    tail: float = 0.4
    kept: float = 0.8
    patience: float = 0.4
    most: float = 2.0
    first_rung: int = 0
    leaps: bool = False
    replays: bool = True

    def __post_init__(self) -> None:
        require_at_least("total_steps", self.total_steps, 1)
        require_in_open_unit_interval("beta", self.beta)
        require_in_open_unit_interval("alpha", self.alpha)
        require_in_open_unit_interval("share", self.share)
        require_in_open_unit_interval("patience", self.patience)
        require_at_least("fewest", self.fewest, 4)
        require_positive("most", self.most)
        if not 0.0 <= self.tail < 1.0:
            raise InvalidArgumentError(f"tail must be at least 0 and less than 1, got {self.tail}")
        if not 0.0 < self.kept <= 1.0:
            raise InvalidArgumentError(f"kept must be above 0 and at most 1, got {self.kept}")
        if self.tail and not self.replays:
            raise InvalidArgumentError(
                f"tail must be 0 without replays, got {self.tail}: different batches tell no ends "
                "apart"
            )

    @property
    def budget(self) -> int:
        """Steps that all probes together may take."""
        two = 2 * (self.probe + self.tail_after(self.probe))
        return max(int(self.most * self.total_steps), two)

    @property
    def probe(self) -> int:
        """Steps of a probe, at its constant rate."""
        return ceil((1.0 - self.tail) * max(self.fewest, ceil(self.share * self.total_steps)))

    @property
    def longest(self) -> int:
        """Steps that a rung is waited for."""
        return max(self.probe, int(self.patience * self.total_steps))

    @property
    def longest_end(self) -> int:
        """Steps at a constant rate after which ends are compared at most."""
        share = ceil((1.0 - self.tail) * ceil(self.share * self.total_steps))
        return min(LONGEST_ENDS * share, self.longest)

    def tail_after(self, steps: int) -> int:
        """Steps of the tail that follows so many at a constant rate; 0 if there is none.

        A rung that was waited for has a tail as long as others have: it only stills the noise.
        """
        steps = min(steps, max(self.probe, self.longest_end))
        return round(steps * self.tail / (1.0 - self.tail))


@dataclass(frozen=True, slots=True)
class Order:
    """Go on with a rung until it has had ``steps`` steps in all, at its constant rate."""

    rung: int
    steps: int


@dataclass(frozen=True, slots=True)
class Finish:
    """From where a rung is, let its rate fall to 0 over ``steps`` steps, and look at its end."""

    rung: int
    steps: int


@dataclass(frozen=True, slots=True)
class Winner:
    """The rung to train, and why."""

    rung: int
    reason: str


Move: TypeAlias = Order | Finish | Winner


class _Wanted(Exception):  # noqa: N818  # no error: a rule lacks a number
    """What has to be known first."""

    def __init__(self, move: Order | Finish) -> None:
        super().__init__(move)
        self.move = move


def next_move(
    settings: RaceSettings,
    probes: Mapping[int, Probe],
    spent: int | None = None,
    *,
    guess: float = inf,
) -> Move:
    """What follows from the probes so far.

    Args:
        settings: of the race.
        probes: by rung; rung 0 is the first, larger numbers are lower rates.
        spent: steps of all probes so far, those included that were started over; None: as many as
            the probes have.
        guess: loss of the best constant output on the rows that are held back: a network that has
            come no further has learned nothing from its inputs [loss].
    """
    if not probes:
        return Order(settings.first_rung, settings.probe)
    begun = [steps for probe in probes.values() for steps in probe.tails]
    # What rungs show once they are given more steps to their ends does not open the bracket again.
    seen = {rung: _cut(probe, min(begun)) for rung, probe in probes.items()} if begun else probes
    move = _wish(settings, seen)
    alive = _alive(settings, seen)
    if isinstance(move, Order) and move.rung in probes:
        had = probes[move.rung]
        if had.fate != "alive" or had.losses.size >= move.steps:  # since the ends have begun
            move = Winner(leader(seen, alive), "leads at constant rates")
    if isinstance(move, Winner) and settings.tail and alive:
        steps = max(seen[rung].losses.size for rung in alive)
        try:
            move = _final(settings, probes, move.rung, steps, guess)
        except _Wanted as wanted:
            move = wanted.move
    if isinstance(move, Winner):
        return move
    if spent is None:
        spent = sum(probe.steps for probe in probes.values())
    cost = move.steps
    if isinstance(move, Order) and settings.replays and move.rung in probes:
        cost -= probes[move.rung].losses.size
    return move if spent + cost <= settings.budget else _so_far(settings, probes)


def _cut(probe: Probe, steps: int) -> Probe:
    """What a rung had shown after so many steps at its constant rate."""
    if probe.losses.size <= steps:
        return probe
    return Probe(probe.losses[:steps], "alive", probe.seconds, probe.tails)


def _final(
    settings: RaceSettings, probes: Mapping[int, Probe], rung: int, steps: int, guess: float
) -> Winner:
    """The rung whose end is the best, from that which leads after ``steps`` steps on.

    Raises:
        _Wanted: if an end is not known yet.
    """
    first = min(float(next(iter(probes.values())).losses[0]), guess)
    shorter = None
    while True:
        ends = _Ends(settings, probes, steps)
        lowest = rung + SLOW_RUNGS
        while not isfinite(ends[rung]) and rung < lowest:
            rung += 1
        for side in (-1, 1):
            while ends[rung + side] < ends[rung] and not _close(ends[rung + side], ends[rung]):
                rung += side
        fall = _fall(first, ends[rung])
        if fall >= SURE or rung == shorter or 2 * steps > settings.longest_end:
            break
        shorter, steps = rung, 2 * steps
    if not isfinite(ends[rung]):
        alive = _alive(settings, probes)
        if not alive:
            return Winner(max(probes), "no rate holds")
        return Winner(leader(probes, alive), "no end holds: it leads before")
    if fall < FALLEN:
        while _close(ends[rung - 1], ends[rung]):
            rung -= 1
        return Winner(rung, "nothing has fallen: the highest rung that holds")
    if settings.kept < 1.0 and _fall(first, ends[rung + 1]) >= settings.kept * fall:
        return Winner(rung + 1, "as good at its end as the rung above it")
    return Winner(rung, "better at its end than the rungs beside it")


def _close(one: float, other: float) -> bool:
    """Whether two ends are next to equal."""
    return isfinite(one) and abs(one - other) <= FALL * abs(other)


class _Ends:
    """The ends of rungs after so many steps at their constant rates."""

    def __init__(self, settings: RaceSettings, probes: Mapping[int, Probe], steps: int) -> None:
        self._settings, self._probes, self._steps = settings, probes, steps

    def __getitem__(self, rung: int) -> float:
        """Loss at a rung's end; infinite for one that does not hold.

        Raises:
            _Wanted: if it is not known yet.
        """
        if abs(rung) > FURTHEST:
            return inf
        probe = self._probes.get(rung)
        if self._is_out(rung):
            return inf
        if probe is None or (probe.fate == "alive" and probe.losses.size < self._steps):
            raise _Wanted(Order(rung, self._steps))
        if probe.fate != "alive":
            return inf
        tail = probe.tails.get(self._steps)
        if tail is None and probe.losses.size > self._steps:  # nobody asked while it was there
            return inf
        if tail is None:
            raise _Wanted(Finish(rung, self._settings.tail_after(self._steps)))
        return tail.end

    def _is_out(self, rung: int) -> bool:
        """Whether half the steps have shown a rung to be too high: twice as many make it no better.

        A lower rate may still come up.
        """
        probe, below = self._probes.get(rung), self._probes.get(rung + 1)
        half = self._steps // 2
        if probe is None or below is None or half not in probe.tails or half not in below.tails:
            return False
        one, other = probe.tails[half], below.tails[half]
        if not (isfinite(one.end) and isfinite(other.end)):
            return not isfinite(one.end) and isfinite(other.end)
        if min(one.rows.size, other.rows.size) < FEWEST_PAIRS or _close(one.end, other.end):
            return False
        return paired_test(other.rows, one.rows).pvalue < self._settings.alpha


def _fall(first: float, end: float) -> float:
    """How far a loss has fallen: in logs, which have no unit, where it is positive."""
    if not isfinite(end):
        return -inf
    if first > 0.0 and end > 0.0:
        return log(first / end)
    return inf if end < first else -inf


def _wish(settings: RaceSettings, probes: Mapping[int, Probe]) -> Move:
    """What should follow, whatever it costs."""
    alive = _alive(settings, probes)
    if not alive:
        below = _beside(settings, probes, max(probes), 1)
        if below is None:
            return Winner(max(probes), "no rate holds")
        return Order(below, settings.probe)
    fallen = [rung for rung in alive if has_fallen(probes[rung].losses, settings.alpha)]
    if not fallen:
        return _wait(settings, probes, alive)
    best = leader(probes, fallen)
    if not settings.replays and _may_be_better(settings, probes[alive[0]], probes[best]):
        above = _beside(settings, probes, alive[0], -1)
        if above is not None and above < min(probes):
            return Order(above, settings.probe)
    for side in (-1, 1):
        rung = _beside(settings, probes, best, side)
        if rung is not None:
            return Order(rung, settings.probe)
    return Winner(best, "better than the rungs beside it")


def _may_be_better(settings: RaceSettings, probe: Probe, best: Probe) -> bool:
    """Whether a probe is not shown to be worse than the best one."""
    return compare(best, probe).pvalue >= settings.alpha


def _so_far(settings: RaceSettings, probes: Mapping[int, Probe]) -> Winner:
    """The winner where no further probe can be paid for."""
    alive = _alive(settings, probes)
    if not alive and settings.replays:
        return Winner(max(probes), "no rate holds")
    if not alive:
        return Winner(max(probes) + 1, "no rate above it holds, and the race's steps are spent")
    ends = {
        rung: (-steps, tail.end)
        for rung in alive
        for steps, tail in sorted(probes[rung].tails.items())
        if isfinite(tail.end)
    }
    if ends:
        best = min(ends, key=ends.__getitem__)
        return Winner(best, "the best end so far, and the race's steps are spent")
    fallen = [rung for rung in alive if has_fallen(probes[rung].losses, settings.alpha)]
    if fallen:
        best = leader(probes, fallen)
        return Winner(best, "the best so far, and the race's steps are spent")
    return Winner(leader(probes, alive), "no rung has fallen: the one with the smallest loss")


def _alive(settings: RaceSettings, probes: Mapping[int, Probe]) -> list[int]:
    """The rungs that hold. Where the first rate may be far too high, a rise must not lead up."""
    alive = [rung for rung in sorted(probes) if probes[rung].fate == "alive"]
    if settings.replays:
        return alive
    return [rung for rung in alive if not has_risen(probes[rung].losses)]


def _beside(
    settings: RaceSettings, probes: Mapping[int, Probe], rung: int, side: int
) -> int | None:
    """The rung to try next on one side, -1 above or 1 below; None if that side is settled."""
    distances = [side * (tried - rung) for tried in probes if side * (tried - rung) > 0]
    if distances:
        gap = min(distances)
        return rung + side * (gap // 2) if gap > 1 else None
    others = [abs(tried - rung) for tried in probes if tried != rung]
    stride = 2 * min(others) if settings.leaps and others else 1
    beside = side * min(side * rung + stride, FURTHEST)
    return None if beside in probes or side * beside <= side * rung else beside


def _wait(settings: RaceSettings, probes: Mapping[int, Probe], alive: Sequence[int]) -> Move:
    """No rung has fallen: look higher while the highest is calm, then wait for the highest few.

    One whose losses lie far above those of the lowest rung is on no shoulder, be they ever so
    noisy: without bounds on the rate, a model that tells the classes apart has losses of nothing
    and losses beyond measure, and never breaks down.
    """
    lowest = probes[alive[-1]]
    calm = [rung for rung in alive if is_calm(probes[rung], lowest)]
    above = _beside(settings, probes, calm[0], -1)
    if above is not None:
        return Order(above, settings.probe)
    bottom = max(probes)
    if len(calm) < SLOW_RUNGS and bottom < FURTHEST:
        return Order(bottom + 1, settings.probe)
    candidates = calm[:SLOW_RUNGS]
    shortest = min(candidates, key=lambda rung: probes[rung].losses.size)
    steps = probes[shortest].losses.size
    if steps < settings.longest:
        return Order(shortest, min(2 * steps, settings.longest))
    rung = leader(probes, candidates)
    return Winner(rung, "no rung has fallen: the one with the smallest loss")
