"""The race in a user's own loop: rungs are probed in turn, each from the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from lrsearch.controllers.exptest import Decision, ExpTestState, probe_window
from lrsearch.controllers.race import Order, RaceSettings, Winner, next_move
from lrsearch.controllers.rungs import Fate, Probe, has_fallen, has_risen, was_hopeless
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.errors import InvalidArgumentError
from lrsearch.stats.series import FloatArray
from lrsearch.training.gradients import gets_no_gradient

# Of the run's steps, for all probes together: the rate falls over the last 40 %, and between the
# two the rate that won trains for a quarter of the run.
MOST = 0.35
# Steps of a probe at least: on different batches fewer tell nothing.
LOOP_FEWEST = 16


@dataclass(frozen=True, slots=True)
class ProbeEnd:
    """A probe is over.

    Attributes:
        rung: whose rate is to be trained next, from the restored weights.
        won: whether that rung has won; else it is probed.
        reason: what the probe has shown, and why a rung has won.
    """

    rung: int
    won: bool
    reason: str


class LoopRace:
    """A race under way: which rung is probed, for how long, and what the others have shown.

    A loop draws new batches at every step, so rungs are compared on different ones: the noise of
    the difference of two losses is that of both, which tells less than the same batches would, and
    the race takes the lower rate where it cannot tell. Only losses are kept: a rung that is given
    more steps starts over.

    Args:
        settings: of the race.
    """

    def __init__(self, settings: RaceSettings) -> None:
        self._settings = settings
        self._probes: dict[int, Probe] = {}
        self._spent = 0
        self._rung, self._steps = settings.first_rung, settings.probe
        self._halfway = False

    @property
    def due(self) -> int:
        """Steps of the present probe after which it is to be looked at."""
        return self._steps if self._halfway else self._steps // 2

    def look(
        self, losses: FloatArray, *, exploded: bool, weights: Iterable[Tensor]
    ) -> ProbeEnd | None:
        """Look at the present probe, and end it where it is over.

        Args:
            losses: shape (steps,), of the probe so far [loss].
            exploded: whether they are known to have diverged.
            weights: with the last step's gradients, to tell at a probe's end whether units died.
        """
        fate: Fate = "diverged" if exploded or was_hopeless(losses) else "alive"
        if fate == "alive" and losses.size < self._steps:
            self._halfway = True
            return None
        if fate == "alive" and gets_no_gradient(weights):
            fate = "dead"
        self._probes[self._rung] = probe = Probe(losses, fate)
        self._spent += losses.size
        shown = f"probe: {self._shown(probe)}"
        move = next_move(self._settings, self._probes, self._spent)
        if isinstance(move, Order):
            self._rung, self._steps, self._halfway = move.rung, move.steps, False
            return ProbeEnd(move.rung, False, shown)
        assert isinstance(move, Winner)  # there are no ends
        times = self._settings.beta**move.rung
        return ProbeEnd(
            move.rung, True, f"{shown}; {times:.3g} times the first rate wins: {move.reason}"
        )

    def _shown(self, probe: Probe) -> str:
        if probe.fate == "dead":
            return "dead, its weights get no gradient"
        if probe.fate == "diverged":
            return "diverged"
        if has_risen(probe.losses):
            return "rises"
        return "falls" if has_fallen(probe.losses, self._settings.alpha) else "has not fallen"

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly; plain values."""
        return {
            "probes": {
                rung: {"losses": probe.losses.tolist(), "fate": probe.fate}
                for rung, probe in self._probes.items()
            },
            "spent": self._spent,
            "rung": self._rung,
            "steps": self._steps,
            "halfway": self._halfway,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self._probes = {
            int(rung): Probe(np.asarray(probe["losses"], dtype=np.float64), probe["fate"])
            for rung, probe in state["probes"].items()
        }
        self._spent = int(state["spent"])
        self._rung, self._steps = int(state["rung"]), int(state["steps"])
        self._halfway = bool(state["halfway"])


def start_race(
    race: bool | None, settings: ExpTestSettings, given: Mapping[str, object]
) -> LoopRace | None:
    """The race of a loop; None for none.

    Args:
        race: what the user asked for; None: a race wherever there can be one.
        settings: of the ExpTest.
        given: arguments that leave nothing to race if they are given (are true), by name.

    Raises:
        InvalidArgumentError: if a race is asked for where there can be none.
    """
    if race is False:
        return None
    wrong = _unfit(settings, given)
    if wrong is None:
        assert settings.total_steps is not None
        return LoopRace(_race_settings(settings, settings.total_steps))
    if race:
        raise InvalidArgumentError(f"race=True {wrong}, or leave race out")
    return None


def resume_race(settings: ExpTestSettings, state: Mapping[str, Any] | None) -> LoopRace | None:
    """The race that was under way, from its ``state_dict``; None if none was."""
    if state is None:
        return None
    assert settings.total_steps is not None  # there was none without
    race = LoopRace(_race_settings(settings, settings.total_steps))
    race.load_state_dict(state)
    return race


def end_probe(
    settings: ExpTestSettings, state: ExpTestState, losses: FloatArray, lr: float, end: ProbeEnd
) -> tuple[ExpTestState, Decision]:
    """What follows for the machine from the end of a probe: a restart.

    Args:
        settings, state: of the ExpTest.
        losses: shape (steps since ``state.start``,) [loss].
        lr: of the probe (first parameter group).
        end: what the race says.
    """
    window = probe_window(
        settings,
        losses,
        lr,
        won=False,
        reason=end.reason,
        start=state.start,
        index=state.windows,
    )
    after = replace(
        state, start=window.stop, windows=state.windows + 1, restarts=state.restarts + 1
    )
    return after, Decision("restart", lr, window, end.reason)


def _unfit(settings: ExpTestSettings, given: Mapping[str, object]) -> str | None:
    """Why there can be no race, and what to do."""
    if settings.mode != "robust":
        return f"needs mode='robust', got {settings.mode!r}: change it"
    if settings.total_steps is None:
        return "needs total_steps, got None: pass the steps of the whole run"
    obstacle = next((name for name, value in given.items() if value), None)
    if obstacle is not None:
        return f"does not go with {obstacle}: leave {obstacle} out"
    plan = _race_settings(settings, settings.total_steps)
    if 2 * plan.probe > MOST * settings.total_steps:
        return (
            f"needs two probes of {plan.probe} steps in {MOST:.0%} of total_steps, got "
            f"total_steps={settings.total_steps}: train for longer"
        )
    return None


def _race_settings(settings: ExpTestSettings, total_steps: int) -> RaceSettings:
    return RaceSettings(
        total_steps,
        beta=settings.beta,
        alpha=settings.alpha,
        most=MOST,
        first_rung=0,
        leaps=True,
        replays=False,
        fewest=LOOP_FEWEST,
        tail=0.0,  # on different batches it would be the batches that tell
    )
