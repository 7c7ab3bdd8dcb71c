"""What a search is asked for, and what it needs before its first trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import Any, Final

from lrsearch.controllers.race import RaceSettings
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.lipschitz import default_multipliers
from lrsearch.engine.methods import METHODS, Plan, make_plan
from lrsearch.engine.start import Start, checked_start, find_start
from lrsearch.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    require_choice,
    require_number,
    require_positive,
    require_whole,
)
from lrsearch.stats.convergence import MODES, Mode
from lrsearch.tasks import resolve_task
from lrsearch.training.exptest import ANNEAL
from lrsearch.training.loop import steps_per_epoch
from lrsearch.training.task import TaskData, TrainingTask

# The largest that numpy's generators take.
LARGEST_SEED: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What a user asks of a search; the arguments of ``search`` that say what is found.

    Every worker of a study gets the same one: together with the data it decides each trial.

    Raises:
        ValueError, TypeError: on bad input, in one line, before any data are loaded.
    """

    task: TrainingTask | str
    method: str = "exptest"
    mode: Mode = "robust"
    alpha: float = 0.05
    beta: float = 0.33
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    seed: int = 0
    trials: int | None = None
    data_dir: str | PathLike[str] | None = None
    start: str | None = None
    multipliers: Sequence[float] | None = None
    anneal: float | None = None
    guard: bool | None = None
    race: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        require_choice("method", self.method, METHODS)
        require_choice("mode", self.mode, MODES)
        if not 0 <= require_whole("seed", self.seed) <= LARGEST_SEED:
            raise InvalidArgumentError(f"seed must lie in 0 ... {LARGEST_SEED}, got {self.seed!r}")
        for name in ("trials", "epochs", "batch_size"):
            count = getattr(self, name)
            if count is not None and require_whole(name, count) < 1:
                raise InvalidArgumentError(f"{name} must be at least 1, got {count!r}")
        begin = checked_start(self.method, self.start, self.mode)
        object.__setattr__(self, "start", begin)
        factors = _checked_multipliers(self.method, begin, self.multipliers)
        object.__setattr__(self, "multipliers", factors)
        self._check_robust()
        self.settings()

    def race_settings(self, total_steps: int) -> RaceSettings:
        """Of a race for a run of so many steps."""
        return RaceSettings(total_steps, beta=self.beta, alpha=self.alpha, **(self.race or {}))

    def _check_robust(self) -> None:
        """What only mode "robust" knows, and only where ExpTest drives the rate."""
        if self.anneal is not None and not 0.0 <= require_number("anneal", self.anneal) <= 1.0:
            raise InvalidArgumentError(f"anneal must lie in [0, 1], got {self.anneal!r}")
        given = {"anneal": self.anneal, "guard": self.guard, "race": self.race}
        named = [name for name, value in given.items() if value]
        if named and (self.mode == "paper" or self.start is None):
            raise InvalidArgumentError(
                f"{named[0]} goes with method 'exptest' in mode 'robust', got method "
                f"{self.method!r} in mode {self.mode!r}: leave it out"
            )
        if self.race is None:
            return
        known = {each.name for each in fields(RaceSettings)} - {"total_steps", "beta", "alpha"}
        if not isinstance(self.race, Mapping):
            raise InvalidTypeError(f"race must be a mapping of options, got {self.race!r}")
        if self.start != "race":
            raise InvalidArgumentError(f"race goes with start='race', got start={self.start!r}")
        for name in self.race:
            require_choice("option of race", name, tuple(sorted(known)))
        self.race_settings(1)

    def settings(self) -> ExpTestSettings:
        """ExpTest's settings, as far as they do not depend on the data."""
        return ExpTestSettings(alpha=self.alpha, beta=self.beta, mode=self.mode)

    def resolved(self) -> TrainingTask:
        """The task itself, with the user's own epochs, batch size and optimizer."""
        task = as_task(self.task, self.data_dir)
        changes: dict[str, Any] = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": self.optimizer,
        }
        return replace(task, **{key: value for key, value in changes.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that stands before the first trial.

    Attributes:
        request: what was asked.
        task, data: what is trained.
        settings: ExpTest's, for these data.
        start: where the search begins.
        multipliers: of 1 / L; None where they have no place.
        plan: the study's method.
    """

    request: SearchRequest
    task: TrainingTask
    data: TaskData
    settings: ExpTestSettings
    start: Start
    multipliers: Sequence[float] | None
    plan: Plan


def prepare(
    request: SearchRequest,
    task: TrainingTask,
    *,
    data: TaskData | None = None,
    start: Start | None = None,
    worker: int = 0,
    device: str = "cpu",
) -> Prepared:
    """Load the data, find where to begin, and plan the study.

    Args:
        request: what was asked.
        task: ``request.resolved()``.
        data: if they are loaded already.
        start: if it is known already: all workers of a study begin at the same rate.
        worker: number of the worker among those of its study; a random sampler's seed depends on it
            (else all would draw the same).

    Raises:
        InvalidTypeError: if the task's data are no ``TaskData``.
        MissingDataError: if they are not to be had.
    """
    data = task.data(request.seed) if data is None else data
    if not isinstance(data, TaskData):
        raise InvalidTypeError(
            f"data of task {task.name!r} must return TaskData, got {type(data).__name__}"
        )
    full_batch = task.batch_size is None or task.batch_size >= len(data.train)
    steps = steps_per_epoch(task, data) * task.epochs
    # Algorithm 1 knows no annealing, and no validation.
    robust = request.mode == "robust"
    anneal = request.anneal if request.anneal is not None else ANNEAL * robust
    settings = replace(request.settings(), full_batch=full_batch, total_steps=steps, anneal=anneal)
    factors = request.multipliers
    if request.method == "lipschitz" and request.start is None:
        factors = factors or default_multipliers(task, request.mode)
    if start is None:
        start = find_start(
            task,
            data,
            request.mode,
            request.seed,
            method=request.method,
            start=request.start,
            race=request.race_settings(steps),
            device=device,
        )
    settings = replace(settings, raced=start.raced)
    plan = make_plan(
        request.method,
        start.rate,
        settings,
        request.seed,
        request.trials,
        guarded=request.start == "lipschitz",
        multipliers=factors or (1.0,),
        epochs=task.epochs,
        worker=worker,
    )
    guard = robust if request.guard is None else request.guard
    plan = replace(plan, guard=plan.controlled and guard)
    return Prepared(request, task, data, settings, start, factors, plan)


def as_task(task: TrainingTask | str, data_dir: str | PathLike[str] | None) -> TrainingTask:
    """The task itself, or the one that a name means."""
    if isinstance(task, TrainingTask):
        return task
    if isinstance(task, str):
        return resolve_task(task, data_dir=data_dir)
    raise InvalidTypeError(f"task must be a TrainingTask or a name, got {type(task).__name__}")


def _checked_multipliers(
    method: str, start: str | None, multipliers: Sequence[float] | None
) -> tuple[float, ...] | None:
    if multipliers is None:
        return None
    if method != "lipschitz" and start != "lipschitz":
        raise InvalidArgumentError(
            f"multipliers go with method 'lipschitz' or start='lipschitz', got method {method!r}: "
            "leave them out"
        )
    if isinstance(multipliers, str) or not isinstance(multipliers, Sequence) or not multipliers:
        raise InvalidTypeError(
            f"multipliers must be a sequence of positive numbers, got {multipliers!r}"
        )
    if start == "lipschitz" and len(multipliers) > 1:
        raise InvalidArgumentError(
            f"multipliers must hold one number with start='lipschitz', whose ladder goes on by "
            f"itself; got {multipliers!r}"
        )
    return tuple(require_positive("multipliers", each) for each in multipliers)
