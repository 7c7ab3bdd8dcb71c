"""The race of rungs: which rate is worth a training run?

Rungs are tried from the same weights on the same batches, each for a short probe, so that their
losses are compared pair by pair. The bracket grows upward while the highest rung is the best, and
downward while the lowest is; it ends when the best one has a worse rung on both sides. A rung that
has not fallen yet decides nothing: where none has, the highest that hold are given more steps.

Where batches cannot be drawn again (a user's own loop), the same comparisons are made between
losses on different batches. The tests hold there too, for they take the noise of the differences
from the differences, but that noise is larger and they tell less. What they cannot tell must not
end the race at a rate that is far too low: the highest rung has to be shown to be worse, and of
those that are level the one with the smallest loss wins, not the lowest. A race that starts at a
rate that may be far off leaps: its strides double until the best rung has rungs on both sides, and
the gaps that this leaves are halved.

Everything here is a pure function of what the probes have shown, in units of the ladder: the rate
of rung k is ``first * beta**k``, and k may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Literal, TypeAlias

import numpy as np
from scipy import special

from lrsearch.errors import require_at_least, require_in_open_unit_interval, require_positive
from lrsearch.stats.pairing import PairedResult, paired_test
from lrsearch.stats.plateau import plateau_test
from lrsearch.stats.series import FloatArray

Fate = Literal["alive", "diverged", "dead"]

# A loss this many times the first one, so many times in a row, is beyond hope.
HOPELESS_FACTOR, HOPELESS_RUN = 4.0, 3
# A fall of less than this share of the loss is none; one of more needs no trend.
FALL, PLAIN_FALL = 0.01, 0.3
# A rise is one if it is as plain, and so many standard deviations of the losses.
RISE_NOISE = 2.0
# One curve overtakes another in time if it does by this share of the run.
HORIZON = 0.5
# Rungs that are given more steps where none has fallen.
SLOW_RUNGS = 3
# Rungs further from the first than this are not tried: 20 decades at beta = 0.33.
FURTHEST = 42


@dataclass(frozen=True, slots=True)
class RaceSettings:
    """How a race is run.

    Attributes:
        total_steps: of the training run that the race is for.
        beta: ratio of one rung to the one above, in (0, 1).
        alpha: level of the tests, in (0, 1).
        share: of ``total_steps``, for a probe.
        fewest: steps of a probe at least: momentum takes ten to come up to its speed.
        patience: share of ``total_steps`` that a rung is waited for while none has fallen.
        rivals: whether a rung that comes up from behind is waited for.
        slack: whether the rate may lie a part of a rung below the winner's.
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
    fewest: int = 16
    patience: float = 0.4
    rivals: bool = True
    slack: bool = True
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

    @property
    def budget(self) -> int:
        """Steps that all probes together may take."""
        return max(int(self.most * self.total_steps), 2 * self.probe)

    @property
    def probe(self) -> int:
        """Steps of a probe."""
        return max(self.fewest, ceil(self.share * self.total_steps))

    @property
    def longest(self) -> int:
        """Steps that a rung is waited for."""
        return max(self.probe, int(self.patience * self.total_steps))


@dataclass(frozen=True, slots=True)
class Probe:
    """What a rung has shown so far.

    Attributes:
        losses: shape (steps,), of its first steps [loss].
        fate: "alive", "diverged" or "dead" (its weights get no gradient any more).
        seconds: what it took.
    """

    losses: FloatArray
    fate: Fate = "alive"
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Order:
    """Go on with a rung until it has had ``steps`` steps in all."""

    rung: int
    steps: int


@dataclass(frozen=True, slots=True)
class Winner:
    """The rung to train, and why; ``lower`` so many rungs (or a part of one) below it."""

    rung: int
    reason: str
    lower: float = 0.0


Move: TypeAlias = Order | Winner


def next_move(
    settings: RaceSettings, probes: Mapping[int, Probe], spent: int | None = None
) -> Move:
    """What follows from the probes so far.

    Args:
        settings: of the race.
        probes: by rung; rung 0 is the first, larger numbers are lower rates.
        spent: steps of all probes so far, those included that were started over; None: as many as
            the probes have losses.
    """
    if not probes:
        return Order(settings.first_rung, settings.probe)
    move = _wish(settings, probes)
    if isinstance(move, Winner):
        return move
    if spent is None:
        spent = sum(probe.losses.size for probe in probes.values())
    had = probes[move.rung].losses.size if settings.replays and move.rung in probes else 0
    if spent + move.steps - had <= settings.budget:
        return move
    return _so_far(settings, probes)


def _wish(settings: RaceSettings, probes: Mapping[int, Probe]) -> Move:
    """What should follow, whatever it costs."""
    alive = _alive(settings, probes)
    if not alive:
        below = _beside(settings, probes, max(probes), 1)
        if below is None:
            return Winner(max(probes), "no rate holds")
        return Order(below, settings.probe)
    fallen = [rung for rung in alive if has_fallen(settings, probes[rung].losses)]
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
    rival = _rival(settings, probes, best) if settings.rivals else None
    if rival is not None:
        shorter = min((best, rival), key=lambda rung: probes[rung].losses.size)
        return Order(shorter, min(2 * probes[shorter].losses.size, settings.longest))
    lower = 0.0
    if settings.slack and best + 1 in probes:
        lower = slack(settings, probes[best], probes[best + 1])
    return Winner(best, "better than the rungs beside it", lower)


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
    fallen = [rung for rung in alive if has_fallen(settings, probes[rung].losses)]
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


def _rival(settings: RaceSettings, probes: Mapping[int, Probe], best: int) -> int | None:
    """A rung that lies behind, but comes up fast enough to matter, and may have more steps."""
    for rung in (best - 1, best + 1):
        probe = probes.get(rung)
        if probe is None or probe.fate != "alive":
            continue
        shorter = min(probe.losses.size, probes[best].losses.size)
        if shorter < settings.longest and overtakes(settings, probe, probes[best]):
            return rung
    return None


def overtakes(settings: RaceSettings, behind: Probe, ahead: Probe) -> bool:
    """Whether the curve that lies behind is shown to come up, and would pass in time.

    The log of the ratio of the two losses is taken to go on falling as a line in the log of the
    step, as it has between the second quarter and the second half.
    """
    steps = min(behind.losses.size, ahead.losses.size)
    quarter, half = steps // 4, steps // 2
    first, second = behind.losses[:steps], ahead.losses[:steps]
    if half - quarter < 2 or np.any(first <= 0.0) or np.any(second <= 0.0):
        return False
    ratio = np.log(first / second)
    before, after = ratio[quarter:half], ratio[half:]
    gap, gained = float(after.mean()), float(before.mean() - after.mean())
    error = float(np.sqrt(before.var(ddof=1) / before.size + after.var(ddof=1) / after.size))
    freedom = min(before.size, after.size) - 1.0
    if gained <= float(special.stdtrit(freedom, 1.0 - settings.alpha)) * error:
        return False
    if gap <= 0.0:
        return True
    speed = gained / np.log(2.0)  # the middles of the two stretches lie a factor of two apart
    return bool(np.log(HORIZON * settings.total_steps / (0.75 * steps)) * speed > gap)


def leader(probes: Mapping[int, Probe], rungs: Sequence[int]) -> int:
    """The rung whose losses lie lowest, each two compared over the second half of what both had.

    A rung that was given no more steps must not cut short what longer ones have shown since.
    """
    best = rungs[0]
    for rung in rungs[1:]:
        steps = min(probes[rung].losses.size, probes[best].losses.size)
        late = slice(steps // 2, steps)
        if np.mean(probes[rung].losses[late]) < np.mean(probes[best].losses[late]):
            best = rung
    return best


def slack(settings: RaceSettings, best: Probe, below: Probe) -> float:
    """The part of a rung by which the rate may be lower, from how little the rung below loses.

    Where nothing but the rate limits progress, a rung that is lower by beta keeps beta of the fall
    of the log loss: then there is none. A rung that keeps more shows that noise limits the higher
    one already, and all the more in a run that is longer than its probe; one that keeps all of it
    is as good. In between by a line. Both the logs and the share are free of the loss's unit.
    """
    steps = min(best.losses.size, below.losses.size)
    late = slice(steps // 2, steps)
    first = float(best.losses[0])
    ends = float(np.mean(best.losses[late])), float(np.mean(below.losses[late]))
    if below.fate != "alive" or not 0.0 < ends[0] < first or ends[1] <= 0.0:
        return 0.0
    kept = float(np.log(first / ends[1]) / np.log(first / ends[0]))
    return min(max((kept - settings.beta) / (1.0 - settings.beta), 0.0), 1.0)


def compare(first: Probe, second: Probe) -> PairedResult:
    """Paired test over the second half of the shorter probe: does the first lie below?

    Of the logarithms where all losses are positive: a rate that is too high has a few loud ones.
    """
    steps = min(first.losses.size, second.losses.size)
    late = slice(steps // 2, steps)
    one, other = first.losses[late], second.losses[late]
    if np.all(one > 0.0) and np.all(other > 0.0):
        return paired_test(np.log(one), np.log(other))
    return paired_test(one, other)


def has_fallen(settings: RaceSettings, losses: FloatArray) -> bool:
    """Whether a curve has shown a fall that matters."""
    if losses.size < 4 or not np.all(np.isfinite(losses)):
        return False
    half = losses.size // 2
    early, late = float(losses[:half].mean()), float(losses[half:].mean())
    first = float(losses[0])
    if first - late < FALL * abs(first):  # a jump that came down again is no fall
        return False
    if first - late > PLAIN_FALL * abs(first):
        return True
    if early - late < FALL * abs(early):
        return False
    return plateau_test(losses, alpha=settings.alpha).verdict == "descending"


def has_risen(losses: FloatArray) -> bool:
    """Whether the second half lies above the first loss, by a plain share and beyond noise."""
    late = losses[losses.size // 2 :]
    rise = float(late.mean() - losses[0])
    return rise > max(PLAIN_FALL * abs(float(losses[0])), RISE_NOISE * float(late.std()))


def hopeless(losses: Sequence[float]) -> bool:
    """Whether a probe is beyond hope with its last loss: not finite, or far above its first."""
    if not losses:
        return False
    if not isfinite(losses[-1]):
        return True
    last = losses[-HOPELESS_RUN:]
    limit = HOPELESS_FACTOR * abs(losses[0])
    return len(losses) > HOPELESS_RUN and all(loss > limit for loss in last)


def was_hopeless(losses: FloatArray) -> bool:
    """Whether ``hopeless`` holds for a beginning of these losses, shape (steps,)."""
    if not np.all(np.isfinite(losses)):
        return True
    above = losses > HOPELESS_FACTOR * np.abs(losses[:1])
    runs = np.convolve(above, np.ones(HOPELESS_RUN), mode="full")
    return bool(np.any(runs >= HOPELESS_RUN))


def _wait(settings: RaceSettings, probes: Mapping[int, Probe], alive: Sequence[int]) -> Move:
    """No rung has fallen: look higher while the highest holds, then wait for the highest few."""
    above = _beside(settings, probes, alive[0], -1)
    if above is not None:
        return Order(above, settings.probe)
    bottom = max(probes)
    if len(alive) < SLOW_RUNGS and bottom < FURTHEST:
        return Order(bottom + 1, settings.probe)
    candidates = alive[:SLOW_RUNGS]
    shortest = min(candidates, key=lambda rung: probes[rung].losses.size)
    steps = probes[shortest].losses.size
    if steps < settings.longest:
        return Order(shortest, min(2 * steps, settings.longest))
    rung = leader(probes, candidates)
    return Winner(rung, "no rung has fallen: the one with the smallest loss")
