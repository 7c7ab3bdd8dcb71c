"""What a method's runs are worth: regret to a dense bank, failures, cost, profile.

A *case* is a base task under a shift with an optimizer. Accuracy is in points; a squared error is
in percent of the best rate's, and three percent count as a point, so that both have one scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

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
    errors = np.full(values.shape, direction(base) == "minimize")
    return _points(errors, values, best, np.full(values.shape, best.mean()))


def _points(errors: NDArray[np.bool_], values: Array, best: Array, mean: Array) -> Array:
    """As ``points``, all of shape (runs,); ``errors``: where the metric is a squared error."""
    with np.errstate(invalid="ignore", over="ignore"):
        percent = 100.0 * np.where(errors, (values - best) / mean, best - values)
    regret = percent / np.where(errors, PERCENT_A_POINT, 1.0)
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
    best = _best_by_seed(banks)
    overall = best.loc[best["optimizer"] == OWN, [*TASK, SEED, "best_test", "best_mean"]]
    runs = rows.merge(best, on=[*CASE, SEED]).merge(
        overall, on=[*TASK, SEED], suffixes=("", "_all")
    )
    errors = runs["base"].map(direction).eq("minimize").to_numpy(bool)
    numbers = {
        name: runs[name].to_numpy(np.float64)
        for name in ("test_metric", "train_loss", "lr", "steps", "best_lr", "best_train", "run")
    }

    def regret(suffix: str) -> Array:
        against = (runs[f"best_{name}{suffix}"].to_numpy(np.float64) for name in ("test", "mean"))
        return _points(errors, numbers["test_metric"], *against)

    own = runs["optimizer"].eq(OWN).to_numpy(bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(np.log10(numbers["lr"] / numbers["best_lr"]))
    train = np.log(
        np.maximum(numbers["train_loss"], _TINY) / np.maximum(numbers["best_train"], _TINY)
    )
    joined = ["best_test", "best_mean", "best_train", "best_test_all", "best_mean_all", "run"]
    return runs.drop(columns=joined).assign(
        points=np.where(own, np.nan, regret("")),
        points_all=regret("_all"),
        train_regret=np.where(np.isnan(train), np.inf, train),
        cost=numbers["steps"] / numbers["run"],
        lr_error=np.where(own, np.nan, error),
        best_lr=np.where(own, np.nan, numbers["best_lr"]),
    )


def _best_by_seed(banks: Banks) -> pd.DataFrame:
    """The best rate of each case, with a row a seed; those over all optimizers stand as ``OWN``."""
    columns = [*CASE, SEED, "best_lr", "best_test", "best_train", "best_mean", "run"]
    lines = [
        (*case, seed, best.lr, best.test[seed], best.train[seed], mean, best.steps)
        for case, best in best_rates(banks).items()
        for mean in (np.mean(list(best.test.values())),)
        for seed in best.test
    ]
    return pd.DataFrame(lines, columns=columns)


def per_case(runs: pd.DataFrame, banks: Banks) -> pd.DataFrame:
    """A line a case and method: means over its seeds.

    A case is failed if a run gave no finite answer, or the mean regret is above ``FAILURE``:
    to the same optimizer's best ("failed"; own updates: as the next) and to the best of all
    ("failed_all"). "worth" is the least k at which the expected best of k distinct random rates of
    the bank is as good on test (means over the seeds), infinite if no number of them is. "regret"
    is in the metric's own unit: points, or percent of the best squared error.
    """
    found = best_rates(banks)
    expected = {case: _expected(case[0], bank) for case, bank in banks.items()}
    own = runs["optimizer"].eq(OWN)
    given = runs.assign(
        judged=runs["points"].where(~own, runs["points_all"]),
        log_lr=np.log(runs["lr"].where(runs["lr"] > 0.0)),
    )
    cases = given.groupby([*CASE, "method"], sort=False, as_index=False).agg(
        seeds=(SEED, "size"),
        points=("points", "mean"),
        points_all=("points_all", "mean"),
        judged=("judged", "mean"),
        worst_seed=("judged", "max"),
        broken=("failed", "max"),
        train_regret=("train_regret", "mean"),
        cost=("cost", "mean"),
        lr_error=("lr_error", "mean"),
        lr=("log_lr", "mean"),
        best_lr=("best_lr", "first"),
        test_metric=("test_metric", lambda values: values.mean(skipna=False)),
        seconds=("seconds", "mean"),
    )
    keys = list(cases[CASE].itertuples(index=False, name=None))
    errors = cases["base"].map(direction).eq("minimize")
    broken = cases["broken"].astype(bool)
    return cases.assign(
        lr=np.exp(cases["lr"]),
        broken=broken,
        regret=cases["judged"].where(~errors, cases["judged"] * PERCENT_A_POINT),
        failed=broken | (cases["judged"] > FAILURE),
        failed_all=broken | (cases["points_all"] > FAILURE),
        worth=[
            _worth(key[0], expected[key[0], key[1], found[key].optimizer], value)
            for key, value in zip(keys, cases["test_metric"], strict=True)
        ],
        oracle_gap=[_oracle_gap(key[0], found[key]) for key in keys],
    ).drop(columns="judged")


def _expected(base: str, bank: Bank) -> Array:
    """Expected test metric of the best of k random rates, mean over the seeds, at k - 1."""
    way = direction(base)
    curves = [
        expected_best(bank.runs, at, way, guess=guess) for at, guess in enumerate(bank.guesses)
    ]
    return np.mean(curves, axis=0)


def _worth(base: str, expected: Array, value: float) -> float:
    way = direction(base)
    if not np.isfinite(value):
        return np.nan
    # A method that ends as the bank's own run does is as good, whatever float32 makes of it.
    value += (-1e-6 if way == "maximize" else 1e-6) * abs(value)
    return worth_trials(expected, value, way)


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
