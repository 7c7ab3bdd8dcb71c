"""What the rungs of a race have shown, and what can be read off it.

A rung is probed at its constant rate; from there its rate may fall to 0, as at the end of a run,
and the loss that this leaves on rows held back is the rung's *end*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal

import numpy as np

from lrsearch.stats.pairing import FEWEST_PAIRS, PairedResult, paired_test
from lrsearch.stats.plateau import plateau_test
from lrsearch.stats.series import FloatArray

Fate = Literal["alive", "diverged", "dead"]

# A loss this many times the first one, so many times in a row, is beyond hope.
HOPELESS_FACTOR, HOPELESS_RUN = 4.0, 3
# A fall of less than this share of the loss is none; one of more needs no trend.
FALL, PLAIN_FALL = 0.01, 0.3
# So small a share of the first loss is nothing.
NOTHING = 1e-4
# A rise is one if it is as plain, and so many standard deviations of the losses.
RISE_NOISE = 2.0


@dataclass(frozen=True, slots=True)
class Tail:
    """What a rung had come to when its rate had fallen to 0.

    Attributes:
        losses: shape (steps,), while the rate fell [loss].
        rates: shape (steps,), the rates that they met.
        rows: shape (rows,), losses of the rows that are held back, with the weights of the end;
            none if the rung diverged or died on the way [loss].
    """

    losses: FloatArray
    rates: FloatArray
    rows: FloatArray

    @property
    def end(self) -> float:
        """Mean loss of the rows; infinite without a number [loss]."""
        mean = float(self.rows.mean()) if self.rows.size else inf
        return mean if isfinite(mean) else inf


@dataclass(frozen=True, slots=True)
class Probe:
    """What a rung has shown so far.

    Attributes:
        losses: shape (steps,), of its first steps, at its constant rate [loss].
        fate: "alive", "diverged" or "dead" (its weights get no gradient any more).
        seconds: what it took.
        tails: by the steps at the constant rate that they follow.
        aside: steps that only told whether units had died for good.
    """

    losses: FloatArray
    fate: Fate = "alive"
    seconds: float = 0.0
    tails: Mapping[int, Tail] = field(default_factory=dict)
    aside: int = 0

    @property
    def steps(self) -> int:
        """Gradient steps that it took, tails included."""
        tails = sum(tail.losses.size for tail in self.tails.values())
        return int(self.losses.size) + tails + self.aside


def leader(probes: Mapping[int, Probe], rungs: Sequence[int]) -> int:
    """The rung whose losses lie lowest, each two compared over the second half of what both had.

    A rung that was given no more steps must not cut short what longer ones have shown since. Of
    two that are next to nothing beside the first loss the lower rate leads: where classes can be
    told apart, the loss of any rate beyond measure comes to nothing.
    """
    best = min(rungs)
    for rung in sorted(rungs):
        steps = min(probes[rung].losses.size, probes[best].losses.size)
        late = slice(steps // 2, steps)
        nothing = NOTHING * abs(float(probes[rung].losses[0]))
        ahead = float(np.mean(probes[best].losses[late]))
        if float(np.mean(probes[rung].losses[late])) < max(ahead, nothing):
            best = rung
    return best


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


def compare_ends(first: Probe, second: Probe) -> PairedResult | None:
    """Paired test over the rows: does the first end lie below, after the most steps that both had?

    None if there are no two ends to compare.
    """
    common = set(first.tails) & set(second.tails)
    if not common:
        return None
    one, other = first.tails[max(common)].rows, second.tails[max(common)].rows
    return paired_test(one, other) if min(one.size, other.size) >= FEWEST_PAIRS else None


def has_fallen(losses: FloatArray, alpha: float) -> bool:
    """Whether a curve has shown a fall that matters, at the level alpha where it takes a test."""
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
    return plateau_test(losses, alpha=alpha).verdict == "descending"


def has_risen(losses: FloatArray) -> bool:
    """Whether the second half lies above the first loss, by a plain share and beyond noise."""
    late = losses[losses.size // 2 :]
    rise = float(late.mean() - losses[0])
    return rise > max(PLAIN_FALL * abs(float(losses[0])), RISE_NOISE * float(late.std()))


def is_calm(probe: Probe, lowest: Probe) -> bool:
    """Whether a curve lies no further above that of the lowest rate than by a plain share.

    On the same batches: a first loss may be that of an easy one.
    """
    steps = min(probe.losses.size, lowest.losses.size)
    late = slice(steps // 2, steps)
    base = float(lowest.losses[late].mean())
    return float(probe.losses[late].mean()) - base <= PLAIN_FALL * abs(base)


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
