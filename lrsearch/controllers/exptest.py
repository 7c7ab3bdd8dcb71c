"""ExpTest as a pure state machine: (state, window) -> (state, decision).

Phases: *searching* (F-test; a failure restarts lower) and *training* (plateau test; a plateau
decays the rate). A window goes through three stages, each a function here:

1. ``open_window``: the first loss is known, so the uncorrected length w is (Eq. 52);
2. ``correct_window``: after w steps the gradients' sums are known, so the length c_w w is (Eq. 53);
3. ``judge``: the losses are in; a test decides.

The state is a small frozen record, so a run can be saved, resumed and replayed from a loss curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lrsearch.controllers.settings import PAPER_FLOOR, ExpTestSettings
from lrsearch.errors import (
    InvalidArgumentError,
)
from lrsearch.stats.convergence import exponential_test
from lrsearch.stats.divergence import (
    SPIKE_FACTOR,
    first_divergence,
    has_spike,
    is_unstable,
    relapses,
)
from lrsearch.stats.plateau import plateau_test
from lrsearch.stats.window import window_length
from lrsearch.windows import Kind, Phase, WindowStats

Curve: TypeAlias = Sequence[float] | NDArray[Any]

# Longest first window: this share of the budget, or so many steps if the budget is unknown.
CEILING_SHARE = 0.1
CEILING_STEPS = 2000
# A flat start is looked at three times, at 1, 2 and 4 window lengths, or as far as a quarter of the
# budget; the looks spend alpha as 1/2 + 1/4 + 1/8, and a steady fall at the last look the rest.
LOOKS = 3
PATIENCE_SHARE = 0.25
STEADY_SHARE = 0.125
# An undecided plateau is watched for at most half the budget, or 32 window lengths; these looks
# spend alpha as 1/2 + 1/4 + ... too.
WATCH_SHARE = 0.5
WATCH_LENGTHS = 32
_ENDLESS = 2**62  # steps
# A run whose loss has fallen by less than this share of its first one has not begun to.
SHOULDER = 0.1
# One that had fallen by this share and is back there has broken down: units have died.
PLAIN_FALL = 0.3
STRETCHES = 8
# Rungs below this share of the first rate are not tried; decays stop there too.
SMALLEST_FACTOR = 1e-8


@dataclass(frozen=True, slots=True)
class ExpTestState:
    """Where the run stands.

    Attributes:
        phase: "searching" or "training".
        factor: present rate relative to the first one.
        restarts, decays: how many of each so far.
        initial_loss: L0, the loss of the first step; None until known.
        start: step at which the present window begins.
        raw_length: w of Eq. 52 within floor and ceiling; None until L0 is known.
        correction: c_w of the present window; None until known, 1 where the length does not
            depend on it.
        length: steps after which the window is judged; None until corrected.
        looks: how often the present window was looked at already.
        windows: looks so far, over all windows.
        lowest: smallest mean loss of an eighth of a window, at this rate and the rates it was
            decayed from.
        stopped: whether the machine has said "stop".
    """

    phase: Phase = "searching"
    factor: float = 1.0
    restarts: int = 0
    decays: int = 0
    initial_loss: float | None = None
    start: int = 0
    raw_length: int | None = None
    correction: float | None = None
    length: int | None = None
    looks: int = 0
    windows: int = 0
    lowest: float = inf
    stopped: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for a state_dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next.

    Attributes:
        kind: "continue"; "accept" (the rate passed; training goes on); "decay" (lower the rate,
            keep the weights); "restart" (lower the rate, restore the initial weights); "stop".
        lr: learning rate from here on (first parameter group).
        window: the window that was judged; None if none was.
        reason: why, in words.
    """

    kind: Kind
    lr: float
    window: WindowStats | None = None
    reason: str = ""


def open_window(
    settings: ExpTestSettings, state: ExpTestState, *, initial_loss: float, lr: float, step: int
) -> ExpTestState:
    """The first loss is known: plan the window's uncorrected length.

    Args:
        settings, state: as they stand.
        initial_loss: loss of the run's first step; ignored once one is kept.
        lr: present learning rate.
        step: steps taken so far.
    """
    first = state.initial_loss
    if first is None:
        first = initial_loss if isfinite(initial_loss) else 0.0
    raw = _within(settings, window_length(first, lr), state.start)
    opened = replace(state, initial_loss=first, raw_length=raw)
    # A window of the greatest length cannot be made longer, and c_w >= 1: no need to measure it.
    longest = settings.mode == "robust" and raw == _within(settings, _ENDLESS, state.start)
    if settings.full_batch or longest or step - state.start > raw:
        return correct_window(settings, opened, correction=1.0)
    return opened


def correct_window(
    settings: ExpTestSettings, state: ExpTestState, *, correction: float
) -> ExpTestState:
    """The gradients' sums are known: fix the length at which the window is judged."""
    raw = _planned(state)
    length = _within(settings, round(min(correction * raw, 2.0**62)), state.start)
    return replace(state, correction=correction, length=length)


def due_step(settings: ExpTestSettings, state: ExpTestState) -> int:
    """Step at or after which the machine wants to be asked next."""
    if state.raw_length is None:
        due = state.start + settings.probe
    elif state.length is None:
        due = state.start + state.raw_length
    else:
        due = state.start + state.length
    return due if settings.total_steps is None else min(due, settings.total_steps)


def is_complete(settings: ExpTestSettings, state: ExpTestState, step: int) -> bool:
    """Whether the window may be judged at ``step``: long enough, and not cut by the budget."""
    if state.length is None:
        return False
    return step - state.start >= max(state.length, settings.floor)


def judge(
    settings: ExpTestSettings,
    state: ExpTestState,
    losses: Sequence[float] | NDArray[Any],
    lr: float,
) -> tuple[ExpTestState, Decision]:
    """The window's losses are in, or have diverged: decide.

    Args:
        settings, state: as they stand.
        losses: shape (steps since ``state.start``,) [loss].
        lr: learning rate of the window (first parameter group).
    """
    values = np.asarray(losses, dtype=np.float64)
    end = state.start + values.size
    look = _Look(settings, state, values, lr)
    if not np.all(np.isfinite(values)) or first_divergence(values) is not None:
        return look.restart("diverged")
    if state.phase == "searching":
        return _search(settings, state, look, end)
    return _train(settings, state, look, end)


def probe_window(
    settings: ExpTestSettings,
    losses: Curve,
    lr: float,
    *,
    won: bool,
    reason: str,
    start: int = 0,
    index: int = 0,
) -> WindowStats:
    """The record of a probe, whose verdict a race has spoken; the F-test's numbers beside it.

    Args:
        settings: alpha and mode count.
        losses: shape (steps,) [loss].
        lr: learning rate of the probe.
        won: whether the race chose it.
        reason: the race's.
        start: step at which the probe began.
        index: number of the look.
    """
    values = np.asarray(losses, dtype=np.float64)
    state = ExpTestState(length=values.size, start=start, windows=index)
    look = _Look(settings, state, values, lr)
    if values.size >= PAPER_FLOOR and np.all(np.isfinite(values)):
        look.f_test(settings.alpha)
    window = look.decided(state, "accept" if won else "restart", 1.0, reason)[1].window
    assert window is not None
    return window


def lowered(
    settings: ExpTestSettings, state: ExpTestState, losses: Curve, lr: float, reason: str
) -> tuple[ExpTestState, Decision]:
    """Somebody else asks for a decay: the window ends here.

    Args:
        settings, state: as they stand.
        losses: shape (steps since ``state.start``,) [loss].
        lr: learning rate of the window (first parameter group).
        reason: in words.
    """
    return _Look(settings, state, np.asarray(losses, dtype=np.float64), lr).decay(reason)


def diverged(
    settings: ExpTestSettings,
    state: ExpTestState,
    losses: Sequence[float] | NDArray[Any],
    lr: float,
) -> tuple[ExpTestState, Decision]:
    """The loss is not finite or explodes: no window is needed, the rate is rejected at once."""
    return _Look(settings, state, np.asarray(losses, dtype=np.float64), lr).restart("diverged")


def _search(
    settings: ExpTestSettings, state: ExpTestState, look: _Look, end: int
) -> tuple[ExpTestState, Decision]:
    level = settings.level(state.looks)
    look.f_test(level)
    if settings.mode == "paper":
        return look.accept("decay") if look.passed else look.restart("not exponential")
    if settings.raced:
        return look.accept("decay" if look.passed else "won its race")
    if look.passed:
        return look.accept_if_stable("decay")
    if look.rises(level):
        return look.restart("rising")
    if has_spike(look.losses):
        return look.restart("unstable")
    longer = _longer(settings, state, end, share=PATIENCE_SHARE, lengths=2 ** (LOOKS - 1))
    if longer is not None:
        return look.extend(
            longer, "falling, not bent yet" if look.falls(level) else "no decay shown yet"
        )
    # The last look: a steady fall is convergence without a bend, and a lower rate only slows it.
    if look.falls_steadily(STEADY_SHARE * settings.alpha):
        return look.accept_if_stable("steady fall")
    return look.restart("flat")


def _train(
    settings: ExpTestSettings, state: ExpTestState, look: _Look, end: int
) -> tuple[ExpTestState, Decision]:
    verdict = look.plateau(settings.level(state.looks))
    if end > settings.annealing_from:  # the rate falls by itself
        return look.next_window(verdict)
    if settings.raced and look.has_broken_down():
        return look.restart("broken down")
    if verdict == "plateau" and state.factor * settings.beta > SMALLEST_FACTOR:
        if settings.raced and not look.has_fallen():  # a shoulder: what has not begun is not over
            return look.next_window("not fallen yet")
        return look.decay()
    if verdict == "undecided":
        longer = _longer(settings, state, end, share=WATCH_SHARE, lengths=WATCH_LENGTHS)
        if longer is not None:
            return look.extend(longer, "undecided")
    return look.next_window(verdict)


def _within(settings: ExpTestSettings, length: int, start: int) -> int:
    """The length within floor, ceiling and what is left of the budget."""
    total = settings.total_steps
    if settings.mode == "paper":
        ceiling = length
    elif total is None:
        ceiling = CEILING_STEPS
    else:
        ceiling = int(total * CEILING_SHARE)
    bounded = max(min(length, ceiling), settings.floor)
    return bounded if total is None else max(min(bounded, total - start), 1)


def _longer(
    settings: ExpTestSettings, state: ExpTestState, end: int, *, share: float, lengths: int
) -> int | None:
    """Twice the window's present length, or None where patience or the budget ends."""
    planned = round(min((state.correction or 1.0) * _planned(state), 2.0**62))
    first = _within(settings, planned, state.start)
    limit = first * lengths
    total = settings.total_steps
    if total is not None:
        limit = min(max(limit, int(total * share)), total - state.start)
    present = end - state.start
    longer = min(2 * present, limit)
    return longer if longer > present else None


def _planned(state: ExpTestState) -> int:
    if state.raw_length is None:
        raise InvalidArgumentError("state has no window: call open_window first")
    return state.raw_length


def _lowest(losses: NDArray[np.float64]) -> float:
    """Smallest mean of an eighth of the losses; infinite if there is no number."""
    parts = np.array_split(losses, min(STRETCHES, max(losses.size, 1)))
    means = [float(part.mean()) for part in parts if part.size and np.all(np.isfinite(part))]
    return min(means, default=inf)


class _Look:
    """One look at a window: runs the tests, keeps their numbers, builds state and decision."""

    def __init__(
        self, settings: ExpTestSettings, state: ExpTestState, losses: NDArray[np.float64], lr: float
    ) -> None:
        self._settings, self._state, self.losses, self._lr = settings, state, losses, lr
        self._end = state.start + losses.size
        self.passed = False
        nan = float("nan")
        self._numbers = {
            "n_effective": float(losses.size),
            "f_statistic": nan,
            "sse_linear": nan,
            "sse_exponential": nan,
            "slope": nan,
            "t_statistic": nan,
            "pvalue": 1.0,
        }
        self._rise_pvalue = 1.0
        self._fall_pvalue = 1.0

    def f_test(self, level: float) -> None:
        result = exponential_test(self.losses, alpha=level, mode=self._settings.mode)
        self.passed = result.passed
        self.plateau(level)
        self._numbers |= {
            "n_effective": result.n_effective,
            "f_statistic": result.statistic,
            "sse_linear": result.sse_linear,
            "sse_exponential": result.sse_exponential,
            "pvalue": result.pvalue,
        }

    def plateau(self, level: float) -> str:
        result = plateau_test(self.losses, alpha=level, mode=self._settings.mode)
        self._fall_pvalue = result.pvalue
        self._rise_pvalue = 1.0 - result.pvalue if isfinite(result.statistic) else 1.0
        if result.statistic == float("inf"):
            self._rise_pvalue = 0.0
        self._numbers |= {
            "n_effective": result.n_effective,
            "slope": result.slope,
            "t_statistic": result.statistic,
            "pvalue": result.pvalue,
        }
        return result.verdict

    def falls(self, level: float) -> bool:
        return self._fall_pvalue < level

    def falls_steadily(self, level: float) -> bool:
        """Whether the losses fall without the window's first one too: a loud loss is no fall."""
        rest_of = self.losses[1:]
        rest = plateau_test(rest_of, alpha=level, mode=self._settings.mode)
        return self.falls(level) and rest.verdict == "descending"

    def has_fallen(self) -> bool:
        """Whether the losses lie below the run's first one by a share that matters."""
        return self._below_first(float(self.losses.mean())) > SHOULDER

    def has_broken_down(self) -> bool:
        """Whether the losses are back where the run began, after they had plainly fallen."""
        return self._below_first(self._state.lowest) > PLAIN_FALL and not self.has_fallen()

    def _below_first(self, loss: float) -> float:
        """How far a loss lies below the run's first one, as a share of it; -inf if it is not."""
        first = self._state.initial_loss or 0.0
        return (first - loss) / abs(first) if first and isfinite(loss) else -inf

    def rises(self, level: float) -> bool:
        return self._rise_pvalue < level

    def accept(self, reason: str) -> tuple[ExpTestState, Decision]:
        state = replace(self._fresh(), phase="training", length=self._same_length())
        return self.decided(state, "accept", 1.0, reason)

    def accept_if_stable(self, reason: str) -> tuple[ExpTestState, Decision]:
        factor = 1.0 if self._settings.full_batch else SPIKE_FACTOR
        unstable = is_unstable(self.losses, factor=factor)
        # A full batch has no noise that could climb back by a share of a fall that is a decay's.
        unstable = unstable or (self._settings.full_batch and relapses(self.losses))
        return self.restart("unstable") if unstable else self.accept(reason)

    def next_window(self, reason: str) -> tuple[ExpTestState, Decision]:
        state = replace(self._fresh(), length=self._same_length())
        return self.decided(state, "continue", 1.0, reason)

    def extend(self, length: int, reason: str) -> tuple[ExpTestState, Decision]:
        state = replace(
            self._state, length=length, looks=self._state.looks + 1, windows=self._state.windows + 1
        )
        return self.decided(state, "continue", 1.0, reason)

    def decay(self, reason: str = "plateau") -> tuple[ExpTestState, Decision]:
        beta = self._settings.beta
        state = replace(
            self._unmeasured(),
            phase="training",
            factor=self._state.factor * beta,
            decays=self._state.decays + 1,
        )
        return self.decided(state, "decay", beta, reason)

    def restart(self, reason: str) -> tuple[ExpTestState, Decision]:
        beta = self._settings.beta
        # Lower than the rate that failed: in training, decays count too.
        factor = self._state.factor * beta
        state = replace(
            self._unmeasured(),
            phase="searching",
            factor=factor,
            restarts=self._state.restarts + 1,
            lowest=inf,
        )
        if factor < SMALLEST_FACTOR:
            stopped = replace(state, stopped=True)
            return self.decided(stopped, "stop", 1.0, f"no rate passed; the last one: {reason}")
        return self.decided(state, "restart", beta, reason)

    def _fresh(self) -> ExpTestState:
        """The next window begins here, with the same measured correction."""
        return replace(
            self._state,
            start=self._end,
            looks=0,
            length=None,
            windows=self._state.windows + 1,
            lowest=min(self._state.lowest, _lowest(self.losses)),
        )

    def _unmeasured(self) -> ExpTestState:
        """The next window begins here; its length and correction are measured anew."""
        return replace(self._fresh(), raw_length=None, correction=None)

    def _same_length(self) -> int:
        planned = (self._state.correction or 1.0) * _planned(self._state)
        return _within(self._settings, round(min(planned, 2.0**62)), self._end)

    def decided(
        self, state: ExpTestState, kind: Kind, change: float, reason: str
    ) -> tuple[ExpTestState, Decision]:
        losses = self.losses
        finite = losses[np.isfinite(losses)]
        with np.errstate(over="ignore"):  # an exploded window's mean may be infinite: so be it
            mean = float(finite.mean()) if finite.size else float("nan")
        window = WindowStats(
            index=self._state.windows,
            phase=self._state.phase,
            start=self._state.start,
            stop=self._end,
            length=self._state.length or losses.size,
            correction=self._state.correction or 1.0,
            lr=self._lr,
            loss_first=float(losses[0]) if losses.size else float("nan"),
            loss_last=float(losses[-1]) if losses.size else float("nan"),
            loss_mean=mean,
            decision=kind,
            reason=reason,
            **self._numbers,
        )
        return state, Decision(kind=kind, lr=self._lr * change, window=window, reason=reason)
