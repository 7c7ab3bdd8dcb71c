"""What a method's runs are worth: regret to a dense bank, failures, cost, profile.

A *case* is a base task under a shift with an optimizer. Accuracy is in points; a squared error is
in percent of the best rate's, and three percent count as a point, so that both have one scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.bench.bank import BankRuns
from experiments.bench.panel import OWN
from experiments.bench.replayed import expected_best, worth_trials
from experiments.bench.tasks import BASES
from experiments.harness.reproduction import SEED

FAILURE: Final = 5.0  # points: a regret above it is a failure
TARGET: Final = 1.0  # points: a method that comes so near to the best rate has reached it
PERCENT_A_POINT: Final = 3.0  # of squared error
CAP: Final = 100.0  # points: no run's regret counts more, and one without an answer has this
LONGEST: Final = 4.0  # training runs: where the performance profile ends
SAME, ALL = "same optimizer", "all optimizers"
_TINY: Final = 1e-12  # training losses below it count as it, in ratios

TASK: Final = ["base", "shift"]
CASE: Final = [*TASK, "optimizer"]

Array: TypeAlias = NDArray[np.float64]
Case: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Bank:
    """A case's dense bank.

    Attributes:
        runs: at all rates, of all seeds.
        guesses: test metric of the best constant output, of each seed.
    """

    runs: BankRuns
    guesses: Sequence[float]


Banks: TypeAlias = Mapping[Case, Bank]


@dataclass(frozen=True, slots=True)
class Best:
    """The best fixed rate of a bank, or of several.

    Attributes:
        optimizer: of the bank.
        lr: the rate of the best mean validation metric over the seeds; of equal ones that of the
            least validation loss.
        test, train: test metric and training loss at that rate, by seed.
        oracle: best mean test metric of any rate, which nobody could have chosen.
        oracle_lr: its rate.
        steps: of one training run.
        chosen_by: (-metric or metric, loss) on validation, the less the better.
    """

    optimizer: str
    lr: float
    test: Mapping[int, float]
    train: Mapping[int, float]
    oracle: float
    oracle_lr: float
    steps: int
    chosen_by: tuple[float, float]


def direction(base: str) -> str:
    """Which way a base task's metric improves, as Optuna writes it."""
    return "minimize" if BASES[base].regression else "maximize"


def best_rate(runs: BankRuns, optimizer: str, way: str) -> Best:
    """The best rate of a bank.

    Args:
        runs: the bank.
        optimizer: of its runs.
        way: "maximize" or "minimize", of the metric.
    """
    sign = -1.0 if way == "maximize" else 1.0

    def means(values: NDArray[np.float32]) -> Array:
        found: Array = values.astype(np.float64).mean(axis=0)
        return found

    loss = np.nan_to_num(means(runs.validation.loss), nan=np.inf)
    metric = sign * means(runs.validation.metric)
    if way == "maximize":  # as many right, whatever float32 makes of the shares
        metric = metric.round(6)
    # A rate at which a seed exploded is nobody's best, whatever its metric.
    metric = np.where(np.isfinite(loss), metric, np.inf)
    best = int(np.lexsort((loss, metric))[0])
    test = np.nan_to_num(sign * means(runs.test.metric), nan=np.inf)
    oracle = int(test.argmin())
    by_seed = [int(seed) for seed in runs.seeds]
    return Best(
        optimizer,
        float(runs.rates[best]),
        dict(zip(by_seed, runs.test.metric[:, best].astype(float), strict=True)),
        dict(zip(by_seed, runs.train.loss[:, best].astype(float), strict=True)),
        float(sign * test[oracle]),
        float(runs.rates[oracle]),
        int(runs.checked[-1]),
        (float(metric[best]), float(loss[best])),
    )


def best_rates(banks: Banks) -> dict[Case, Best]:
    """The best rate of each case, and the best over all optimizers of each task (as ``OWN``)."""
    found = {
        case: best_rate(bank.runs, case[2], direction(case[0])) for case, bank in banks.items()
    }
    overall: dict[Case, Best] = {}
    for (base, shift, _), best in found.items():
        key = (base, shift, OWN)
        if key not in overall or best.chosen_by < overall[key].chosen_by:
            overall[key] = best
    return {**found, **overall}


def points(base: str, values: Array, best: Array) -> Array:
    """Regret in points of test metrics, to those of the best rate with the same seeds.

    100 (best - value) for an accuracy; 100 (value - best) / mean(best) / 3 for a squared error.
    At most ``CAP``, which is also that of a value that is no finite number.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if direction(base) == "maximize":
            regret = 100.0 * (best - values)
        else:
            regret = 100.0 * (values - best) / best.mean() / PERCENT_A_POINT
    return np.where(np.isfinite(values), np.minimum(regret, CAP), CAP)


def per_run(rows: pd.DataFrame, banks: Banks) -> pd.DataFrame:
    """Every run beside the best rates of its task.

    Args:
        rows: of the methods: base, shift, optimizer, method, seed, lr, steps, losses, metrics.
        banks: of each case. Runs of a task without one are left out.

    Returns:
        The rows with "points" (regret to the best rate of the same optimizer; NaN for methods that
        have their own update), "points_all" (to the best over all optimizers), "train_regret"
        (log of the ratio of training losses, to the same optimizer's best where there is one),
        "cost" (steps in training runs) and "lr_error" (|log10(lr / best lr)|).
    """
    found = best_rates(banks)
    parts = []
    for key, part in rows.groupby([*CASE, "method"], sort=False):
        base, shift, optimizer, _ = map(str, key)
        overall = found.get((base, shift, OWN))
        same = found.get((base, shift, optimizer))
        if overall is None or same is None:
            continue
        seeds = part[SEED].tolist()
        test = part["test_metric"].to_numpy(np.float64)
        regrets = {
            name: points(base, test, np.array([best.test[seed] for seed in seeds]))
            for name, best in ((SAME, same), (ALL, overall))
        }
        train = np.log(
            np.maximum(part["train_loss"].to_numpy(np.float64), _TINY)
            / np.maximum([same.train[seed] for seed in seeds], _TINY)
        )
        own = optimizer == OWN
        error = np.abs(np.log10(part["lr"].to_numpy(np.float64) / same.lr))
        parts.append(
            part.assign(
                points=np.nan if own else regrets[SAME],
                points_all=regrets[ALL],
                train_regret=np.where(np.isnan(train), np.inf, train),
                cost=part["steps"] / same.steps,
                lr_error=np.nan if own else error,
                best_lr=np.nan if own else same.lr,
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else rows.iloc[:0]


def per_case(runs: pd.DataFrame, banks: Banks) -> pd.DataFrame:
    """A line a case and method: means over its seeds.

    A case is failed if a run gave no finite answer, or the mean regret is above ``FAILURE``:
    to the same optimizer's best ("failed"; own updates: as the next) and to the best of all
    ("failed_all"). "worth" is the least k at which the expected best of k distinct random rates of
    the bank is as good on test (means over the seeds), infinite if no number of them is. "regret"
    is in the metric's own unit: points, or percent of the best squared error.
    """
    found = best_rates(banks)
    lines: list[dict[str, Any]] = []
    for key, part in runs.groupby([*CASE, "method"], sort=False):
        base, shift, optimizer, method = map(str, key)
        best = found[base, shift, optimizer]
        bank = banks[base, shift, best.optimizer]
        unit = PERCENT_A_POINT if direction(base) == "minimize" else 1.0
        broken = bool(part["failed"].any())
        own = optimizer == OWN
        regret, overall = part["points"].mean(), part["points_all"].mean()
        failed_all = broken or overall > FAILURE
        lines.append(
            {
                **dict(zip(CASE, (base, shift, optimizer), strict=True)),
                "method": method,
                "seeds": len(part),
                "points": regret,
                "points_all": overall,
                "regret": unit * (overall if own else regret),
                "worst_seed": part["points_all" if own else "points"].max(),
                "broken": broken,
                "failed": failed_all if own else broken or regret > FAILURE,
                "failed_all": failed_all,
                "train_regret": part["train_regret"].mean(),
                "cost": part["cost"].mean(),
                "lr_error": part["lr_error"].mean(),
                "lr": _geometric_mean(part["lr"]),
                "best_lr": part["best_lr"].iloc[0],
                "worth": _worth(base, bank, part),
                "oracle_gap": _oracle_gap(base, best),
                "seconds": part["seconds"].mean(),
            }
        )
    return pd.DataFrame(lines)


def _geometric_mean(rates: pd.Series[float]) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.exp(np.log(rates.to_numpy(np.float64)).mean()))


def _worth(base: str, bank: Bank, part: pd.DataFrame) -> float:
    way = direction(base)
    value = part["test_metric"].mean(skipna=False)
    curves = [
        expected_best(bank.runs, at, way, guess=guess) for at, guess in enumerate(bank.guesses)
    ]
    if not np.isfinite(value):
        return np.nan
    # A method that ends as the bank's own run does is as good, whatever float32 makes of it.
    value += (-1e-6 if way == "maximize" else 1e-6) * abs(value)
    return worth_trials(np.mean(curves, axis=0), value, way)


def _oracle_gap(base: str, best: Best) -> float:
    """Points by which the best rate on test is better than the one that validation chooses."""
    chosen = np.array([np.mean(list(best.test.values()))])
    return float(points(base, chosen, np.array([best.oracle]))[0])


def profile(cases: pd.DataFrame, against: str = SAME) -> tuple[Array, Array]:
    """Performance profile of a method: the share of cases solved within a cost.

    Dolan and More's ratio needs the cheapest solver of each case; here that is one training run at
    the best rate, so that a method's score does not depend on which others are in the panel. The
    ratio of a case is its cost in training runs, search included; infinite if the mean regret is
    above ``TARGET`` or a run broke.

    Args:
        cases: of one method, of ``per_case``.
        against: which regret.

    Returns:
        Ratios in ascending order, those of missed cases infinite, and the share of cases solved at
        each.
    """
    regret = cases["points" if against == SAME else "points_all"].to_numpy(np.float64)
    solved = (regret <= TARGET) & ~cases["broken"].to_numpy(bool)
    ratios = np.sort(np.where(solved, np.maximum(cases["cost"].to_numpy(np.float64), 1.0), np.inf))
    return ratios, np.arange(1, len(ratios) + 1) / len(ratios)


def profile_area(ratios: Array) -> float:
    """Mean height of the profile between one training run and ``LONGEST`` of them, in [0, 1]."""
    return float(np.clip((LONGEST - ratios) / (LONGEST - 1.0), 0.0, 1.0).mean())
