"""Searches over fixed rates, replayed on a bank that holds all their runs: nothing is trained.

All choose on validation and report that run's test metric. Looks at validation are free here, for
a pruner too; only gradient steps are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, isfinite, nan
from typing import Final

import numpy as np
import optuna
from numpy.typing import NDArray

from experiments.bench.bank import BankRuns
from experiments.bench.courses import PeerOutcome
from lrsearch import TaskData, TrainingTask
from lrsearch.errors import InvalidArgumentError, require_at_least, require_choice
from lrsearch.studies.quiet import quiet_optuna

GRID_STRIDE: Final = 3
TRIALS: Final = 20

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReplayedTrial:
    """A trial over a bank's rates.

    Attributes:
        index: of the rate.
        checks: validation checks that were read before it ended.
        completed: whether it was trained to the end.
    """

    index: int
    checks: int
    completed: bool


def grid(runs: BankRuns, seed_at: int, *, stride: int = GRID_STRIDE) -> PeerOutcome:
    """Every third rate of the bank: nine of its 25, from 1e-7 to 1e5, a factor of 10^1.5 apart.

    Args:
        runs: of the task's optimizer.
        seed_at: index of the seed.
        stride: rates from one point to the next.
    """
    return _chosen(runs, seed_at, range(0, len(runs.rates), stride))


def random_search(runs: BankRuns, seed_at: int, trials: int, seed: int) -> PeerOutcome:
    """Distinct rates drawn at random.

    Args:
        runs: of the task's optimizer.
        seed_at: index of the seed.
        trials: how many, at most the bank's rates.
        seed: of the draw.

    Raises:
        InvalidArgumentError: if there are not so many rates.
    """
    _require_trials(runs, trials)
    drawn = np.random.default_rng(seed).choice(len(runs.rates), size=trials, replace=False)
    return _chosen(runs, seed_at, [int(index) for index in drawn])


def tpe_median(runs: BankRuns, seed_at: int, seed: int, *, trials: int = TRIALS) -> PeerOutcome:
    """Optuna's TPE with its MedianPruner; see ``tpe_trials``."""
    found = tpe_trials(runs, seed_at, optuna.pruners.MedianPruner(), seed, trials=trials)
    return _searched(runs, seed_at, found)


def tpe_hyperband(runs: BankRuns, seed_at: int, seed: int, *, trials: int = TRIALS) -> PeerOutcome:
    """Optuna's TPE with its HyperbandPruner, a check being its resource; see ``tpe_trials``."""
    pruner = optuna.pruners.HyperbandPruner(max_resource=len(runs.checked))
    found = tpe_trials(runs, seed_at, pruner, seed, trials=trials)
    return _searched(runs, seed_at, found)


def tpe_trials(
    runs: BankRuns,
    seed_at: int,
    pruner: optuna.pruners.BasePruner,
    seed: int,
    *,
    trials: int = TRIALS,
) -> list[ReplayedTrial]:
    """The trials of a study over the index of the bank's rates, uniform in the rate's logarithm.

    Validation is reported at each check; a loss that is not finite prunes as well. A rate that is
    proposed twice is paid for twice, as it would be.

    Args:
        runs: of the task's optimizer.
        seed_at: index of the seed.
        pruner: asked after each check but the last.
        seed: of the sampler.
        trials: how many.
    """
    require_at_least("trials", trials, 1)
    found: list[ReplayedTrial] = []
    last = len(runs.checked)

    def objective(trial: optuna.Trial) -> float:
        index = trial.suggest_int("index", 0, len(runs.rates) - 1)
        loss = nan
        for check in range(1, last + 1):
            loss = float(runs.checks[seed_at, index, check - 1])
            if isfinite(loss):
                trial.report(loss, check)
            if not isfinite(loss) or (check < last and trial.should_prune()):
                found.append(ReplayedTrial(index, check, completed=False))
                raise optuna.TrialPruned
        found.append(ReplayedTrial(index, last, completed=True))
        return loss

    with quiet_optuna():
        # Hyperband draws a trial's bracket from the study's name.
        study = optuna.create_study(
            study_name="replayed", sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner
        )
        study.optimize(objective, n_trials=trials)
    return found


def constant_guess(task: TrainingTask, data: TaskData) -> float:
    """The test metric of the best constant output: the mean, or the most frequent class."""
    train, test = data.train.targets, data.test.targets
    if task.metric == "mse":
        return float((test - train.mean(dim=0)).square().mean())
    return float((test == train.mode().values).double().mean())


def expected_best(runs: BankRuns, seed_at: int, direction: str, guess: float) -> Numbers:
    """Expected test metric of the best of k distinct random rates, for k = 1 to all.

    The best is that of the least validation loss. With n rates in the order of that loss, the one
    at rank r (from 0) is the best of k with probability C(n - 1 - r, k - 1) / C(n, k). A loss that
    is not finite comes last, and of equal ones the lower rate first.

    Args:
        runs: of the task's optimizer.
        seed_at: index of the seed.
        direction: "maximize" or "minimize", of the metric.
        guess: of ``constant_guess``; a run that ends worse counts as that, since nobody keeps it,
            and a mean over squared errors that exploded would say nothing.

    Returns:
        Shape (rates,), at k - 1.
    """
    sign = _sign(direction)
    order = np.argsort(_losses(runs, seed_at), kind="stable")
    metric = sign * runs.test.metric[seed_at].astype(np.float64)
    values = np.where(metric > sign * guess, metric, sign * guess)[order]  # nan is worse, too
    count = len(values)
    odds = np.array(
        [
            [comb(count - 1 - rank, k - 1) / comb(count, k) for rank in range(count)]
            for k in range(1, count + 1)
        ]
    )
    return sign * (odds @ values)


def worth_trials(expected: Numbers, value: float, direction: str) -> float:
    """The least k whose expected best is as good as a value; infinite if none is.

    Args:
        expected: of ``expected_best``.
        value: a method's test metric.
        direction: "maximize" or "minimize", of the metric.
    """
    sign = _sign(direction)
    as_good = np.flatnonzero(sign * expected >= sign * value)
    return float(as_good[0] + 1) if as_good.size else float("inf")


def _sign(direction: str) -> float:
    require_choice("direction", direction, ("maximize", "minimize"))
    return 1.0 if direction == "maximize" else -1.0


def _require_trials(runs: BankRuns, trials: int) -> None:
    if require_at_least("trials", trials, 1) > len(runs.rates):
        raise InvalidArgumentError(
            f"trials must be at most the {len(runs.rates)} rates of the bank, got {trials!r}"
        )


def _losses(runs: BankRuns, seed_at: int) -> Numbers:
    """Validation losses of the final weights, infinite where they are no finite number."""
    losses = runs.validation.loss[seed_at].astype(np.float64)
    return np.where(np.isfinite(losses), losses, np.inf)


def _best(runs: BankRuns, seed_at: int, indices: Sequence[int]) -> int:
    """The index of the least validation loss; of equal ones the lowest rate."""
    losses = _losses(runs, seed_at)
    return min(indices, key=lambda index: (losses[index], index))


def _chosen(runs: BankRuns, seed_at: int, indices: Sequence[int]) -> PeerOutcome:
    whole = int(runs.checked[-1])
    return _outcome(runs, seed_at, _best(runs, seed_at, indices), whole * len(indices))


def _searched(runs: BankRuns, seed_at: int, trials: Sequence[ReplayedTrial]) -> PeerOutcome:
    """The best completed trial, or the first where none was (it has diverged then)."""
    steps = sum(int(runs.checked[trial.checks - 1]) for trial in trials)
    completed = [trial.index for trial in trials if trial.completed]
    if not completed:
        return _outcome(runs, seed_at, trials[0].index, steps, reason="no trial was completed")
    return _outcome(runs, seed_at, _best(runs, seed_at, completed), steps)


def _outcome(runs: BankRuns, seed_at: int, index: int, steps: int, reason: str = "") -> PeerOutcome:
    at = seed_at, index
    train, validation = float(runs.train.loss[at]), float(runs.validation.loss[at])
    return PeerOutcome(
        lr=float(runs.rates[index]),
        steps=steps,
        train_loss=train,
        val_loss=validation,
        val_metric=float(runs.validation.metric[at]),
        test_metric=float(runs.test.metric[at]),
        diverged=bool(reason) or not (isfinite(train) and isfinite(validation)),
        reason=reason,
    )
