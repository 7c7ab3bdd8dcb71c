"""Worlds in which the fate of each rung is written beforehand, and workers who do not know it.

Time is simulated: each worker is a generator that yields how long its next step takes. What they
share is a real Optuna study in memory, so a few hundred worlds take seconds.
"""

from __future__ import annotations

import copy
import heapq
import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.studies import ExpTestSampler
from lrsearch.studies.attributes import RUNG, STOP_REASON
from lrsearch.studies.record import TrialRecorder
from lrsearch.studies.rungs import ATTEMPTS_PER_RUNG, read_ladders, read_rung
from lrsearch.windows import Kind, WindowStats

BETA = 0.5
Ending = Literal["rejected", "complete", "diverges"]
Mishap = Literal["fails", "dies", "dies and is retried"]
Life = Generator[float, None, None]


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a rung's trials.

    Attributes:
        ending: of the first attempt without a mishap.
        searching: windows until the F-test has its verdict.
        training: windows from the acceptance to the end.
        mishaps: what befalls the first attempts, each after some windows.
    """

    ending: Ending
    searching: int
    training: int
    mishaps: tuple[tuple[Mishap, int], ...] = ()

    @property
    def given_up(self) -> bool:
        """Whether the rung counts as rejected before any attempt came to its end."""
        return len(self.mishaps) >= ATTEMPTS_PER_RUNG


World = tuple[Fate, ...]


def answer_of_one(world: World) -> int | None:
    """The rung that one worker would find, climbing down."""
    for rung, fate in enumerate(world):
        if fate.ending == "complete" and not fate.given_up:
            return rung
    return None


def make_world(rng: random.Random) -> World:
    """One to seven rungs; the higher, the likelier to be rejected."""

    def fate() -> Fate:
        ending = rng.choices(("rejected", "complete", "diverges"), (5, 3, 3))[0]
        most = rng.choices((0, 1, 2, 3), (6, 2, 1, 1))[0]
        mishaps = [
            (rng.choice(("fails", "dies", "dies and is retried")), rng.randint(0, 6))
            for _ in range(most)
        ]
        # A retry of the last attempt that counts would be one attempt more.
        mishaps[2:] = [("fails", after) for _, after in mishaps[2:]]
        return Fate(ending, rng.randint(1, 4), rng.randint(1, 12), tuple(mishaps))

    return tuple(fate() for _ in range(rng.randint(1, 7)))


def window(kind: Kind, index: int, *, training: bool = False) -> WindowStats:
    """A judged window of 30 steps."""
    nan = float("nan")
    return WindowStats(
        index=index,
        phase="training" if training else "searching",
        start=30 * index,
        stop=30 * index + 30,
        length=30,
        correction=1.0,
        lr=0.1,
        n_effective=30.0,
        f_statistic=nan,
        sse_linear=nan,
        sse_exponential=nan,
        slope=-0.01,
        t_statistic=-3.0,
        pvalue=0.01,
        loss_first=1.0,
        loss_last=0.5,
        loss_mean=0.7,
        decision=kind,
        reason={"restart": "flat", "accept": "decay"}.get(kind, ""),
    )


def judged_windows(fate: Fate) -> list[WindowStats]:
    """All windows of an attempt that meets no mishap and is let be."""
    last: Kind = "restart" if fate.ending == "rejected" else "accept"
    searching = [window("continue", i) for i in range(fate.searching - 1)]
    searching.append(window(last, fate.searching - 1))
    if last == "restart":
        return searching
    count = len(searching)
    end: Kind = "restart" if fate.ending == "diverges" else "continue"
    kinds: list[Kind] = [*["continue"] * (fate.training - 1), end]
    return searching + [window(kind, count + i, training=True) for i, kind in enumerate(kinds)]


def new_study(world: World) -> optuna.Study:
    """A study whose range holds the rungs of ``world``."""
    return optuna.create_study(sampler=ExpTestSampler(beta=BETA, seed=0))


def suggest(trial: Trial, world: World) -> float:
    """The rate; the range ends below the world's last rung."""
    return trial.suggest_float("lr", BETA ** (len(world) - 0.5), 1.0, log=True)


def attempts_on(study: optuna.Study, rung: int) -> int:
    """Attempts on that rung that have failed."""
    trials = study.get_trials(deepcopy=False)
    return sum(each.state == TrialState.FAIL and rung_of(each) == rung for each in trials)


@dataclass(slots=True)
class Simulation:
    """Workers on a world.

    Attributes:
        world: the fates.
        workers: how many.
        rng: of durations, the only chance here.
        study: theirs.
        naps: how often a worker waited in place of asking.
        asked: trials that were asked for, in order.
    """

    world: World
    workers: int
    rng: random.Random
    study: optuna.Study = field(init=False)
    naps: int = 0
    asked: list[int] = field(default_factory=list)
    _events: list[tuple[float, int, Life]] = field(default_factory=list)
    _now: float = 0.0
    _count: int = 0

    def __post_init__(self) -> None:
        self.study = new_study(self.world)

    def run(self) -> None:
        """Until no worker has anything to do."""
        for _ in range(self.workers):
            self._begin(self._work(), self.rng.uniform(0.0, 2.0))
        steps = 0
        while self._events:
            self._now, _, life = heapq.heappop(self._events)
            delay = next(life, None)
            if delay is not None:
                self._begin(life, delay)
            steps += 1
            assert steps < 5000, "the workers wait for ever"

    def _begin(self, life: Life, delay: float) -> None:
        self._count += 1
        heapq.heappush(self._events, (self._now + delay, self._count, life))

    def _pause(self) -> float:
        return self.rng.expovariate(1.0) + 0.01

    def _work(self) -> Life:
        sampler = self.study.sampler
        assert isinstance(sampler, ExpTestSampler)
        speed = self.rng.choice((0.3, 1.0, 3.0))
        while STOP_REASON not in self.study.user_attrs:
            if sampler.waits(self.study):
                if not self.naps:  # A trial asked for now would indeed get no rung.
                    assert copy.deepcopy(self.study).ask().user_attrs[RUNG]["rung"] is None
                self.naps += 1
                yield self._pause()
                continue
            trial = self._ask()
            yield self._pause()
            suggest(trial, self.world)
            rung = trial.user_attrs[RUNG]["rung"]
            if rung is None:  # Born before anybody had told the range.
                yield self._pause()
                self.study.tell(trial, -1.0)
                continue
            fate = self.world[rung]
            met = attempts_on(self.study, rung)
            mishap, after = fate.mishaps[met] if met < len(fate.mishaps) else (None, 0)
            windows = judged_windows(fate)
            recorder = TrialRecorder(trial)
            try:
                for i, each in enumerate(windows):
                    if mishap is not None and i == min(after, len(windows) - 1):
                        raise RuntimeError(mishap)
                    yield speed * self._pause()
                    recorder.window(each)
            except optuna.TrialPruned:
                self.study.tell(trial, state=TrialState.PRUNED)
            except RuntimeError:
                if mishap == "fails":
                    self.study.tell(trial, state=TrialState.FAIL)
                else:
                    self._begin(self._bury(trial, mishap == "dies and is retried"), self._pause())
                    self._begin(self._work(), self._pause())
                    return
            else:
                # The lower the rung, the better its loss: a choice by the loss is a wrong one.
                self.study.tell(trial, 1.0 - 0.1 * rung)
            yield self._pause()

    def _ask(self) -> Trial:
        ladders = read_ladders(self.study.get_trials(deepcopy=False))
        leader = ladders[0].leader() if ladders else None
        trial = self.study.ask()
        self.asked.append(trial.number)
        kept = self.study.get_trials(deepcopy=False)[trial.number]
        if leader is not None and "failed_trial" not in kept.system_attrs:
            rung = rung_of(kept)
            assert rung is not None
            assert rung < leader[0]
        return trial

    def _bury(self, trial: Trial, retried: bool) -> Life:
        """What a heartbeat does with the trial of a dead worker."""
        yield self._pause()
        self.study.tell(trial.number, state=TrialState.FAIL)
        if retried:
            dead = self.study.get_trials(deepcopy=False)[trial.number]
            RetryHeartbeatStaleTrialCallback()(self.study, dead)


def rung_of(trial: FrozenTrial) -> int | None:
    """The rung that a trial holds."""
    place = read_rung(trial)
    return None if place is None else place.rung
