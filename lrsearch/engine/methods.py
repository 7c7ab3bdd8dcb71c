"""The methods that a study can use: which rates are tried, and who may end a trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.errors import InvalidArgumentError
from lrsearch.studies import ExpTestPruner, ExpTestSampler, LipschitzSampler, TryPruner
from lrsearch.studies.quiet import quiet_optuna
from lrsearch.studies.tries import is_try

LR = "lr"
# Baselines look from three decades below the bound to one above it.
GRID_POINTS = 9
_BELOW, _ABOVE = 1e-3, 10.0
# A ladder ends six decades below its bound: 13 rungs at beta = 0.33.
_LADDER_DEPTH = 1e-6
# [L] 7.4: AdaMo's first rates are tried for so many epochs.
TRY_EPOCHS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """One study: the range of rates, and Optuna's parts.

    Attributes:
        low, high: range of the rate.
        sampler, pruner: Optuna's.
        trials: how many at most.
        controlled: whether ``ExpTest`` drives the rate inside a trial.
        reports: whether the validation loss is reported to the pruner.
        renewed: whether ``LipschitzLR`` renews the rate at each epoch's end.
        guard: whether the weights of the best validation metric are kept, and a rise of the loss
            lowers the rate.
        tries: whether short tries choose a multiplier; then the study ends with the trial that is
            trained in full, begun once all others have ended, and what broke down is made up for.
        queue: what each trial of the study is fixed to, in the order of their numbers; {} leaves it
            to the sampler. Written into the study at its start, so that however many workers there
            are, each trial is run once, and none too many. None where trials are begun as they are
            needed (a ladder).
    """

    low: float
    high: float
    sampler: BaseSampler
    pruner: BasePruner
    trials: int
    controlled: bool = False
    reports: bool = False
    renewed: bool = False
    guard: bool = False
    tries: bool = False
    queue: tuple[Mapping[str, float], ...] | None = None


# Of the start, ExpTest's settings, seed, and most trials.
Planner = Callable[[float, ExpTestSettings, int, int | None], Plan]


def _exptest(lr_max: float, settings: ExpTestSettings, seed: int, trials: int | None) -> Plan:
    low = lr_max * _LADDER_DEPTH
    sampler = ExpTestSampler(lr_max, beta=settings.beta, lr_name=LR, seed=seed)
    pruner = ExpTestPruner(
        alpha=settings.alpha, mode=settings.mode, lr_name=LR, full_batch=settings.full_batch
    )
    rungs = int(np.log(_LADDER_DEPTH) / np.log(settings.beta)) + 2
    return Plan(low, lr_max, sampler, pruner, trials or rungs, controlled=True)


def _grid(lr_max: float, settings: ExpTestSettings, seed: int, trials: int | None) -> Plan:
    points = np.geomspace(lr_max * _BELOW, lr_max * _ABOVE, trials or GRID_POINTS)
    queue = tuple({LR: float(rate)} for rate in points)
    low, high = queue[0][LR], queue[-1][LR]
    return Plan(low, high, RandomSampler(seed=seed), NopPruner(), len(queue), queue=queue)


def _random(lr_max: float, settings: ExpTestSettings, seed: int, trials: int | None) -> Plan:
    sampler = RandomSampler(seed=seed)
    count = trials or GRID_POINTS
    low, high = lr_max * _BELOW, lr_max * _ABOVE
    # Drawn beforehand: the same rates, whoever runs them.
    with quiet_optuna():
        study = optuna.create_study(sampler=RandomSampler(seed=seed))
    rates = [study.ask().suggest_float(LR, low, high, log=True) for _ in range(count)]
    queue = tuple({LR: rate} for rate in rates)
    return Plan(low, high, sampler, NopPruner(), count, queue=queue)


def _tpe(lr_max: float, settings: ExpTestSettings, seed: int, trials: int | None) -> Plan:
    sampler = TPESampler(seed=seed, n_startup_trials=4)
    pruner = MedianPruner(n_startup_trials=3, n_warmup_steps=1)
    count = trials or GRID_POINTS
    queue: tuple[Mapping[str, float], ...] = ({},) * count
    return Plan(lr_max * _BELOW, lr_max * _ABOVE, sampler, pruner, count, reports=True, queue=queue)


def _lipschitz(
    unit: float,
    settings: ExpTestSettings,
    seed: int,
    trials: int | None,
    *,
    multipliers: Sequence[float] = (1.0,),
    epochs: int = 1,
) -> Plan:
    """One trial per multiplier; where there are several, and time, as short tries before one."""
    tries = len(multipliers) > 1 and epochs > TRY_EPOCHS
    count = len(multipliers) + tries
    if tries and trials is not None and trials < count:
        raise InvalidArgumentError(
            f"trials must be at least {count} with {len(multipliers)} multipliers (a try of each, "
            f"then the best in full), got {trials!r}"
        )
    sampler = LipschitzSampler(
        1.0 / unit, lr_name=LR, multipliers=multipliers, seed=seed, tries=tries
    )
    # Wide enough to cut nothing: Optuna would not ask the sampler about a single value.
    low, high = _BELOW * unit * min(multipliers), _ABOVE * unit * max(multipliers)
    pruner = TryPruner(TRY_EPOCHS) if tries else NopPruner()
    most = min(trials or count, count)
    queue: tuple[Mapping[str, float], ...] = ({},) * most
    return Plan(
        low, high, sampler, pruner, most, reports=tries, renewed=True, tries=tries, queue=queue
    )


PLANNERS: dict[str, Planner] = {
    "exptest": _exptest,
    "lipschitz": _lipschitz,
    "grid": _grid,
    "random": _random,
    "tpe": _tpe,
}
METHODS = tuple(PLANNERS)


def make_plan(
    method: str,
    rate: float,
    settings: ExpTestSettings,
    seed: int,
    trials: int | None,
    *,
    guarded: bool = False,
    multipliers: Sequence[float] = (1.0,),
    epochs: int = 1,
    worker: int = 0,
) -> Plan:
    """The plan of a method.

    Args:
        method: one of ``METHODS``.
        rate: where it starts.
        settings, seed, trials: ExpTest's settings; of the sampler; most trials.
        guarded: whether "lipschitz" only starts ExpTest's ladder.
        multipliers, epochs: of "lipschitz".
        worker: number of the worker that draws by this plan; each draws numbers of its own.

    Raises:
        InvalidArgumentError: if ``trials`` is too small for the tries.
    """
    if worker and method == "tpe":
        seed = int(np.random.SeedSequence([seed, worker]).generate_state(1)[0])
    if method == "lipschitz" and not guarded:
        return _lipschitz(rate, settings, seed, trials, multipliers=multipliers, epochs=epochs)
    if guarded:
        return _exptest(rate * multipliers[0], settings, seed, trials)
    return PLANNERS[method](rate, settings, seed, trials)


def make_study(
    plan: Plan, *, name: str | None, storage: BaseStorage | None, resume: bool
) -> optuna.Study:
    """The Optuna study of a plan; every method minimises the validation loss."""
    return optuna.create_study(
        storage=storage,
        sampler=plan.sampler,
        pruner=plan.pruner,
        study_name=name,
        direction="minimize",
        load_if_exists=resume,
    )


def fill_queue(study: optuna.Study, plan: Plan) -> None:
    """Write the plan's queue into the study, or what a killed process has not written of it."""
    if plan.queue is None:
        return
    trials = study.get_trials(deepcopy=False)
    lost = sum(each.state == TrialState.FAIL and is_made_up_for(plan, each) for each in trials)
    for values in plan.queue[len(trials) - lost :]:
        study.enqueue_trial(dict(values))


def is_made_up_for(plan: Plan, failed: FrozenTrial) -> bool:
    """Whether another trial takes the place of a failed one: a grid's points and tries are spent,
    but the best try has to be trained in full."""
    return plan.tries and not is_try(failed)
