"""One trial: a rate in, a validation loss out, everything on record."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import Any

import optuna
import pandas as pd
from torch import nn

from lrsearch.controllers.exptest import ExpTestSettings
from lrsearch.engine.drawing import LOSS, KeptCurve, log_picture
from lrsearch.engine.lipschitz import RenewedRate
from lrsearch.engine.methods import LR, TRY_EPOCHS, Plan
from lrsearch.engine.progress import SearchWatcher
from lrsearch.engine.provenance import DataRecord
from lrsearch.engine.record import estimate_metrics, log_failure
from lrsearch.engine.result import FINAL_RATE, OUTCOME, SECONDS, STEPS, windows_row
from lrsearch.engine.start import Start
from lrsearch.figures.description import Figure
from lrsearch.stats.series import FloatArray
from lrsearch.studies.attributes import MULTIPLIER, PVALUE, REASON, STOP_REASON
from lrsearch.tracking import RunStatus, RunTracker, StepTracker
from lrsearch.training.curve import CurveLog
from lrsearch.training.exptest import ExpTest
from lrsearch.training.loop import (
    Evaluation,
    Progress,
    TrainingOutcome,
    build_model,
    make_optimizer,
    rate_of,
    steps_per_epoch,
    train,
)
from lrsearch.training.task import TaskData, TrainingTask
from lrsearch.training.threads import suitable_threads

UNTESTED = "trained to the end, but the budget is shorter than a window: the rate was not tested"


@dataclass(slots=True)
class Objective:
    """Optuna's objective for a task: trains at the suggested rate.

    Attributes:
        task, data: what is trained.
        plan: the method.
        settings: ExpTest's.
        seed: of weights and batches; the same for all trials, so that they are paired.
        run: the study's run in the tracker; each trial gets a child.
        kind: "trial" or "baseline", for the tracker.
        method: its name.
        watcher: is told how it goes.
        start: where the search starts.
        uid: the name of the study's run; each trial's has its number behind it.
        seen: how a tracker calls the data; None if nothing is recorded.
        windows: rows of the windows that were judged.
        chosen_figure: of the best trial so far, if this process trained it and it has one.
        drawing_seconds: what figures of trials took; no part of a search's price.
        keep_model: whether the best trial's model is kept.
        chosen_model: of the best trial so far, if this process trained it and models are kept.
        model_loss: that trial's validation loss.
    """

    task: TrainingTask
    data: TaskData
    plan: Plan
    settings: ExpTestSettings
    seed: int
    run: RunTracker
    kind: str
    method: str
    watcher: SearchWatcher
    start: Start
    uid: str = ""
    seen: DataRecord | None = None
    windows: list[dict[str, Any]] = field(default_factory=list)
    chosen_figure: Figure | None = None
    drawing_seconds: float = 0.0
    keep_model: bool = False
    chosen_model: nn.Module | None = None
    model_loss: float = inf
    _chosen_loss: float = inf

    def __call__(self, trial: optuna.Trial) -> float:
        """Train once; returns the validation loss.

        Raises:
            optuna.TrialPruned: if the rate was rejected.
        """
        rate = trial.suggest_float(LR, self.plan.low, self.plan.high, log=True)
        run = self.run.child(
            f"{self.name_of(trial)}, seed {self.seed}",
            tags={"lrsearch.kind": self.kind, "lrsearch.method": self.method},
            uid=f"{self.uid}-{trial.number}" if self.uid else None,
        )
        run.log_params({"lr": rate, "number": trial.number, "seed": self.seed})
        if self.seen is not None:
            run.log_input(self.seen.name, self.seen.digest, profile=self.seen.profile)
        self.watcher.trial_started(self.name_of(trial), rate, self.steps_of(trial))
        status: RunStatus = "failed"
        attempt: _Attempt | None = None
        try:
            attempt = _Attempt(self, trial, run, rate)
            outcome = attempt.train()
            status = "complete"
            if self.keep_model and outcome.validation.loss < self.model_loss:
                self.chosen_model, self.model_loss = attempt.model, outcome.validation.loss
            if self.plan.tries and not is_try(trial):
                self._end_after(trial, rate)
            return outcome.validation.loss
        except optuna.TrialPruned:
            status = "pruned"
            raise
        except Exception as error:
            trial.set_user_attr(REASON, log_failure(run, error))
            raise
        finally:
            if attempt is None:  # the user's model could not be built
                run.finish(status)
            else:
                attempt.close(status)

    def name_of(self, trial: optuna.Trial) -> str:
        """How a trial is called to a person."""
        kind = "rung" if self.plan.controlled else "try" if is_try(trial) else "trial"
        return f"{self.method} {kind} {trial.number}"

    def steps_of(self, trial: optuna.Trial) -> int:
        """Gradient steps that a trial has before it."""
        epochs = min(TRY_EPOCHS, self.task.epochs) if is_try(trial) else self.task.epochs
        return steps_per_epoch(self.task, self.data) * epochs

    def keep_figure(self, figure: Figure, loss: float) -> None:
        """Hold on to the figure of a completed trial if its validation loss is the best so far."""
        if loss < self._chosen_loss:
            self.chosen_figure, self._chosen_loss = figure, loss

    def _end_after(self, trial: optuna.Trial, rate: float) -> None:
        """The best try has been trained in full: nothing is left to do."""
        reason = f"trial {trial.number} trained the best try in full, lr={rate!r}"
        trial.study.set_user_attr(STOP_REASON, reason)
        trial.study.stop()


def is_try(trial: optuna.Trial) -> bool:
    """Whether a trial is a short try of a multiplier."""
    choice = trial.user_attrs.get(MULTIPLIER)
    return isinstance(choice, dict) and choice["try"] is not None


class _Attempt:
    """The training of one trial, with its accounts."""

    def __init__(
        self, objective: Objective, trial: optuna.Trial, run: RunTracker, rate: float
    ) -> None:
        self._objective, self._trial, self._run = objective, trial, run
        task, data = objective.task, objective.data
        self.model = build_model(task, data, objective.seed)
        self._optimizer = make_optimizer(task.optimizer, list(self.model.parameters()), rate)
        self._kept = KeptCurve(run)
        self._drawn = objective.seen is not None and (
            objective.plan.controlled or objective.plan.renewed
        )
        # Only what is drawn is kept.
        teller: StepTracker = self._kept if self._drawn else run
        self._validation_loss = nan
        self._controller: ExpTest | None = None
        if objective.plan.controlled:
            self._controller = ExpTest(
                self._optimizer,
                model=self.model,
                alpha=objective.settings.alpha,
                beta=objective.settings.beta,
                mode=objective.settings.mode,
                trial=trial,
                full_batch=objective.settings.full_batch,
                total_steps=objective.settings.total_steps,
                tracker=teller,
            )
        self._renewed: RenewedRate | None = None
        if objective.plan.renewed:
            if objective.start.estimate is not None:
                run.log_metrics(estimate_metrics(objective.start.estimate), step=0)
            self._renewed = RenewedRate(
                task,
                data,
                objective.settings.mode,
                model=self.model,
                optimizer=self._optimizer,
                unit=objective.start.rate,
                tracker=run,
            )
        self._curve = CurveLog(teller, objective.steps_of(trial))
        self._steps = 0
        self._began = time.perf_counter()

    def train(self) -> TrainingOutcome:
        """Train, and record what came out."""
        objective = self._objective
        task, data = objective.task, objective.data
        with suitable_threads(self.model, task.batch_size or len(data.train)):
            outcome = train(
                task,
                data,
                model=self.model,
                optimizer=self._optimizer,
                seed=objective.seed,
                controller=self._controller,
                observer=self,
                check_every=1 if is_try(self._trial) else None,
            )
        self._trial.set_user_attr(FINAL_RATE, outcome.lr)
        # The last step alone can break the weights: its loss was finite, theirs is not.
        if outcome.diverged or not isfinite(outcome.validation.loss):
            self._trial.set_user_attr(REASON, "diverged")
            self._trial.set_user_attr(PVALUE, 1.0)
            raise optuna.TrialPruned("diverged")
        self._validation_loss = outcome.validation.loss
        metric = task.metric
        self._run.log_metrics(
            {
                "train/final_loss": outcome.train.loss,
                f"train/{metric}": outcome.train.metric,
                "val/loss": outcome.validation.loss,
                f"val/{metric}": outcome.validation.metric,
                "test/loss": outcome.test.loss,
                f"test/{metric}": outcome.test.metric,
            },
            step=outcome.steps,
        )
        self._trial.set_user_attr(
            OUTCOME,
            {
                "val_loss": outcome.validation.loss,
                "val_metric": outcome.validation.metric,
                "train_loss": outcome.train.loss,
                "test_metric": outcome.test.metric,
            },
        )
        if outcome.ended_early:
            self._trial.set_user_attr(REASON, outcome.ended_early)
        elif self._controller is not None and self._controller.phase == "searching":
            self._trial.set_user_attr(REASON, UNTESTED)
        elif self._renewed is not None and self._renewed.trouble:
            self._trial.set_user_attr(REASON, self._renewed.trouble)
        return outcome

    def close(self, status: RunStatus) -> None:
        """Settle the accounts, whatever ended the trial."""
        objective, number = self._objective, self._trial.number
        if self._renewed is not None:
            self._renewed.close()
        seconds = time.perf_counter() - self._began
        self._trial.set_user_attr(STEPS, self._steps)
        self._trial.set_user_attr(SECONDS, seconds)
        if self._controller is not None and self._controller.windows:
            rows = [windows_row(number, window) for window in self._controller.windows]
            objective.windows.extend(rows)
            self._run.log_table("windows", pd.DataFrame(rows))
            self._run.set_tags({"lrsearch.decision": self._controller.windows[-1].decision})
        reason = str(self._trial.user_attrs.get(REASON, ""))
        # The rate once more, so that its line reaches the end of the chart.
        rate = rate_of(self._optimizer)
        last = {"train/lr": rate, "steps": self._steps, "seconds": seconds}
        self._run.log_metrics(last, step=self._steps)
        if reason:
            self._run.set_tags({"lrsearch.reason": reason})
        if self._drawn:
            began = time.perf_counter()
            self._draw(status, reason)
            objective.drawing_seconds += time.perf_counter() - began
        self._run.finish(status)
        objective.watcher.trial_ended(objective.name_of(self._trial), status, reason)

    def _draw(self, status: RunStatus, reason: str) -> None:
        objective = self._objective
        windows = [] if self._controller is None else self._controller.windows
        rate = self._trial.params[LR]
        words = f"{status}: {reason}" if reason else status
        title = (
            f"{objective.task.name}, {objective.name_of(self._trial)}, seed {objective.seed}\n"
            f"lr = {rate:.4g}, {self._steps:,} steps, {words}"
        )
        figure = self._kept.figure(windows, objective.settings, title)
        if figure is not None:
            log_picture(self._run, LOSS, figure)
            if status == "complete":
                objective.keep_figure(figure, self._validation_loss)

    def stepped(self) -> None:
        """Charge a gradient step."""
        self._steps += 1

    def judged(self, progress: Progress) -> None:
        """Pass a judged window on to whoever watches."""
        self._objective.watcher.trial_moved(progress)

    def recorded(self, losses: FloatArray, start: int, lr: float) -> None:
        """Log a stretch of the loss curve."""
        self._curve.extend(losses, start, lr)

    def validated(self, validation: Evaluation, progress: Progress) -> None:
        """Log the validation loss; let the study's pruner have its say where the plan wants it."""
        metric = self._objective.task.metric
        self._run.log_metrics(
            {"val/loss": validation.loss, f"val/{metric}": validation.metric}, step=progress.step
        )
        self._objective.watcher.trial_moved(progress)
        if self._objective.plan.reports:
            self._trial.report(validation.loss, step=progress.step)
            if self._trial.should_prune():
                self._trial.set_user_attr(REASON, self._why_pruned(validation.loss))
                raise optuna.TrialPruned

    def _why_pruned(self, loss: float) -> str:
        if not is_try(self._trial):
            return "worse than the median trial"
        if not isfinite(loss):
            return "diverged"
        return f"tried for {TRY_EPOCHS} epochs: validation loss {loss:.4g}"

    def epoch_ended(self) -> None:
        """Renew the rate where the plan says so."""
        if self._renewed is not None:
            self._renewed.renew()
