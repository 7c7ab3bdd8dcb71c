"""A joint search as an ordinary Optuna study: the arms differ in where the rate comes from alone.

Batch size, width, weight decay and optimizer are TPE's in every arm, with the same pruner, weights,
batches and budget of gradient steps. The rate is found inside each configuration by a race of
short probes, or is one more of TPE's parameters.
"""

from __future__ import annotations

from functools import partial
from math import ceil, inf, isfinite
from typing import Any, Final

import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import BaseTrial, FixedTrial, TrialState

from lrsearch import ExpTest, TaskData, TrainingTask
from lrsearch.controllers.race import RaceSettings
from lrsearch.studies.quiet import quiet_optuna
from lrsearch.studies.reporting import Reporter
from lrsearch.tasks.builtin import build_mlp
from lrsearch.training.loop import (
    CHECKS,
    Evaluation,
    Progress,
    SilentObserver,
    build_model,
    build_optimizer,
    steps_per_epoch,
    train,
)
from lrsearch.training.probes import run_race
from lrsearch.training.task import OPTIMIZERS
from lrsearch.training.threads import suitable_threads

RACE: Final = "rate by race"
TPE: Final = "rate by TPE"
CONSTANT: Final = "rate by TPE, kept constant"
METHODS: Final = (RACE, TPE, CONSTANT)

BATCH_SIZES: Final = (16, 32, 64, 128, 256)
WIDTHS: Final = (8, 256)
DECAYS: Final = (1e-6, 1e-1)
RATES: Final = (1e-5, 10.0)  # the customary range where five optimizers share one
# Of the median pruner; a step of it is a twentieth of a run.
STARTUP_TRIALS: Final = 5
WARMUP_STEPS: Final = 4


class Account(SilentObserver):
    """What a study has spent, and the validation losses that it has met on the way.

    Attributes:
        steps: gradient steps, probes and pruned trials included.
        best: smallest validation loss so far.
        course: a row for each improvement: "step", "val_loss" and "trial".
    """

    def __init__(self) -> None:
        self.steps = 0
        self.best = inf
        self.course: list[dict[str, Any]] = []

    def see(self, loss: float, trial: int) -> None:
        """Note a validation loss that was met after ``steps`` steps."""
        if loss < self.best:
            self.best = loss
            self.course.append({"step": self.steps, "val_loss": loss, "trial": trial})


class Watch(SilentObserver):
    """Charges a trial's steps to its study, and lets the pruner see its validation losses.

    Attributes:
        best: smallest validation loss of the trial.
    """

    def __init__(self, trial: BaseTrial, account: Account) -> None:
        self._trial, self._account = trial, account
        self._reporter = Reporter(trial)
        self.best = inf

    def stepped(self) -> None:
        """Charge a gradient step."""
        self._account.steps += 1

    def validated(self, validation: Evaluation, progress: Progress) -> None:
        """Report at the share of the run that is over: batch sizes differ in steps an epoch."""
        self.best = min(self.best, validation.loss)
        self._account.see(validation.loss, self._trial.number)
        if self._reporter.rejects(validation.loss, CHECKS * progress.step // progress.total):
            raise optuna.TrialPruned


def suggest_task(trial: BaseTrial, data: TaskData, steps: int) -> TrainingTask:
    """A configuration without its rate; so many epochs that it takes about ``steps`` steps."""
    batch_size = trial.suggest_categorical("batch_size", BATCH_SIZES)
    width = trial.suggest_int("width", *WIDTHS, log=True)
    return TrainingTask(
        name=data.name,
        data=lambda seed: data,
        model=partial(build_mlp, hidden=(width,)),
        epochs=max(1, round(steps / ceil(len(data.train) / batch_size))),
        batch_size=batch_size,
        optimizer=trial.suggest_categorical("optimizer", OPTIMIZERS),
        weight_decay=trial.suggest_float("weight_decay", *DECAYS, log=True),
    )


def train_trial(
    trial: BaseTrial,
    task: TrainingTask,
    data: TaskData,
    rate: float,
    seed: int,
    account: Account,
    *,
    constant: bool = False,
) -> float:
    """Smallest validation loss of a run.

    Args:
        trial: is pruned where the rate diverges, or the study's pruner says so.
        task, data, seed: what is trained; the seed of weights and batches.
        rate: at which it begins.
        account: is charged.
        constant: keep the rate; else ExpTest watches over it, and lets it fall to 0 at the end.

    Raises:
        optuna.TrialPruned: as above.
    """
    model = build_model(task, data, seed)
    optimizer = build_optimizer(task, model, rate)
    total = steps_per_epoch(task, data) * task.epochs
    controller = None
    if not constant:
        controller = ExpTest(optimizer, model=model, trial=trial, total_steps=total, raced=True)
    watch = Watch(trial, account)
    with suitable_threads(model, task.batch_size or len(data.train)):
        outcome = train(
            task,
            data,
            model=model,
            optimizer=optimizer,
            seed=seed,
            controller=controller,
            observer=watch,
            check_every=ceil(task.epochs / CHECKS),
        )
    if outcome.diverged or not isfinite(watch.best):
        raise optuna.TrialPruned
    return watch.best


def objective(
    trial: optuna.Trial, *, method: str, data: TaskData, seed: int, steps: int, account: Account
) -> float:
    """One configuration, trained at the rate that the method finds for it."""
    task = suggest_task(trial, data, steps)
    if method == RACE:
        race = run_race(task, data, seed, RaceSettings(steps_per_epoch(task, data) * task.epochs))
        account.steps += race.steps
        trial.set_user_attr("race_steps", race.steps)
        rate = race.rate
    else:
        rate = trial.suggest_float("lr", *RATES, log=True)
    return train_trial(trial, task, data, rate, seed, account, constant=method == CONSTANT)


def run_study(
    method: str, data: TaskData, seed: int, *, steps: int, budget: int
) -> tuple[optuna.Study, Account]:
    """Search until the budget is spent; the trial that spends the last of it is trained on.

    Args:
        method: one of ``METHODS``.
        data: one split, the same for all seeds.
        seed: of the sampler, the weights and the batches.
        steps: of a run, about.
        budget: gradient steps of the study.
    """
    account = Account()

    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if account.steps >= budget:
            study.stop()

    with quiet_optuna():
        study = optuna.create_study(
            sampler=TPESampler(seed=seed),
            pruner=MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_STEPS),
        )
        study.optimize(
            partial(objective, method=method, data=data, seed=seed, steps=steps, account=account),
            callbacks=[stop],
        )
    return study, account


def random_reference(
    data: TaskData, seed: int, *, steps: int, configurations: int, rates: tuple[float, ...]
) -> list[dict[str, Any]]:
    """Random configurations, each at its best of a grid of rates: a row for each.

    The rates are neither the race's nor TPE's, so that the target favours neither.
    """
    rows = []
    with quiet_optuna():
        sampler = optuna.create_study(sampler=RandomSampler(seed=seed))
    for number in range(configurations):
        drawn = sampler.ask()
        suggest_task(drawn, data, steps)
        account = Account()
        losses = {
            rate: _loss_at(FixedTrial(drawn.params, number), data, rate, seed, steps, account)
            for rate in rates
        }
        best = min(losses, key=lambda rate: losses[rate])
        rows.append({**drawn.params, "lr": best, "val_loss": losses[best], "steps": account.steps})
    return rows


def _loss_at(
    trial: FixedTrial, data: TaskData, rate: float, seed: int, steps: int, account: Account
) -> float:
    try:
        return train_trial(trial, suggest_task(trial, data, steps), data, rate, seed, account)
    except optuna.TrialPruned:
        return inf


def study_row(study: optuna.Study, account: Account) -> dict[str, Any]:
    """What a study came to, in numbers."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    return {
        "steps": account.steps,
        "race_steps": sum(trial.user_attrs.get("race_steps", 0) for trial in trials),
        "trials": len(trials),
        "complete": states.count(TrialState.COMPLETE),
        "pruned": states.count(TrialState.PRUNED),
        "val_loss": account.best,
    }
