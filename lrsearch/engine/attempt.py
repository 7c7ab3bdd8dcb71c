"""The training of one trial, in one process or several, and its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import optuna
import pandas as pd

from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.accounts import Accounts
from lrsearch.engine.drawing import LOSS, KeptCurve, log_picture
from lrsearch.engine.lipschitz import RenewedRate
from lrsearch.engine.methods import LR, TRY_EPOCHS, Plan
from lrsearch.engine.progress import SearchWatcher
from lrsearch.engine.record import estimate_metrics
from lrsearch.engine.result import DEVICE, FINAL_RATE, OUTCOME, SECONDS, STEPS, windows_row
from lrsearch.engine.start import Start
from lrsearch.figures.description import Figure
from lrsearch.stats.series import FloatArray
from lrsearch.studies.attributes import ATTEMPTS, PVALUE, REASON
from lrsearch.studies.reporting import Reporter
from lrsearch.tracking import RunStatus, RunTracker, StepTracker
from lrsearch.training.checkpoints import Checkpoint
from lrsearch.training.curve import CurveLog
from lrsearch.training.exptest import ExpTest
from lrsearch.training.guard import ValidationGuard
from lrsearch.training.keeping import SECONDS as CHECKPOINT_SECONDS
from lrsearch.training.keeping import Keeper, Part
from lrsearch.training.loop import (
    Evaluation,
    Progress,
    TrainingOutcome,
    build_model,
    build_optimizer,
    rate_of,
    train,
)
from lrsearch.training.outbox import Outbox
from lrsearch.training.task import TaskData, TrainingTask
from lrsearch.training.threads import suitable_threads

UNTESTED = "trained to the end, but the budget is shorter than a window: the rate was not tested"


@dataclass(frozen=True, slots=True)
class Keeping:
    """How a trial is made safe against the death of its process.

    Attributes:
        checkpoint: its file; None for none.
        seconds, steps: how often it is saved, see ``Keeper``.
        interrupted: called after each step, see ``Keeper``.
    """

    checkpoint: Checkpoint | None = None
    seconds: float = CHECKPOINT_SECONDS
    steps: int | None = None
    interrupted: Callable[[], BaseException | None] | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one trial is to do.

    Attributes:
        task, data, plan, settings, seed, start: of the search.
        name: how the trial is called to a person.
        rate: at which it begins.
        steps: gradient steps before it.
        short: whether it is a short try of a multiplier.
        drawn: whether a figure is wanted.
        device: where the model is trained; the data are there.
        device_label: how a person calls it.
    """

    task: TrainingTask
    data: TaskData
    plan: Plan
    settings: ExpTestSettings
    seed: int
    start: Start
    name: str
    rate: float
    steps: int
    short: bool
    drawn: bool
    device: str
    device_label: str


class Attempt:
    """The training of one trial, with its accounts; it goes on where its checkpoint is.

    Until the training's end nothing is told to the tracker that a checkpoint does not hold. What
    is told after it follows from the last checkpoint, times included: told twice, it counts once.

    Args:
        what: the trial's assignment.
        trial, run: of Optuna, and of the tracker.
        watcher: is told how it goes.
        keeping: how it is made safe.

    Attributes:
        model: that is trained.
        rows: of the windows that were judged, once it is closed.
        figure: of the training, once it is closed, if one was wanted and the trial was completed.
        validation_loss: of the completed trial; NaN before.
        drawing_seconds: what the figure took.
    """

    def __init__(
        self,
        what: Assignment,
        trial: optuna.Trial,
        run: RunTracker,
        watcher: SearchWatcher,
        keeping: Keeping,
    ) -> None:
        self._what, self._trial, self._run, self._watcher = what, trial, run, watcher
        task, data, settings = what.task, what.data, what.settings
        self.model = build_model(task, data, what.seed).to(what.device)
        self.rows: list[dict[str, Any]] = []
        self.figure: Figure | None = None
        self.validation_loss = nan
        self.drawing_seconds = 0.0
        # Another process has begun with it; one that died may not have got as far as the device.
        self._again = DEVICE in trial.user_attrs or ATTEMPTS in trial.user_attrs
        trial.set_user_attr(DEVICE, what.device_label)
        self._optimizer = build_optimizer(task, self.model, what.rate)
        # Only what is drawn is kept.
        self._kept = KeptCurve(run) if what.drawn else None
        self._teller: StepTracker = run if self._kept is None else self._kept
        self._outbox: Outbox | None = None
        if keeping.checkpoint is not None:
            self._teller = self._outbox = Outbox(self._teller)
        self._controller: ExpTest | None = None
        if what.plan.controlled:
            self._controller = ExpTest(
                self._optimizer,
                model=self.model,
                alpha=settings.alpha,
                beta=settings.beta,
                mode=settings.mode,
                trial=trial,
                full_batch=settings.full_batch,
                total_steps=settings.total_steps,
                anneal=settings.anneal,
                raced=settings.raced,
                tracker=self._teller,
            )
        self._guard: ValidationGuard | None = None
        if what.plan.guard:
            self._guard = ValidationGuard(self.model)
        self._renewed: RenewedRate | None = None
        if what.plan.renewed:
            self._renewed = RenewedRate(
                task,
                data,
                settings.mode,
                model=self.model,
                optimizer=self._optimizer,
                unit=what.start.rate,
                tracker=self._teller,
            )
        self._reporter = Reporter(trial) if what.plan.reports else None
        self._curve = CurveLog(self._teller, what.steps)
        self._accounts = Accounts()
        self._keeper = self._make_keeper(keeping)
        resumed = self._keeper.begin(self.model, self._optimizer, self._controller)
        if self._renewed is not None and what.start.estimate is not None and not resumed:
            self._teller.log_metrics(estimate_metrics(what.start.estimate), step=0)

    def train(self) -> TrainingOutcome:
        """Train, or go on, and record what came out.

        Raises:
            optuna.TrialPruned: if the rate was rejected.
            TrainingLeft: if that is asked for.
        """
        end = self._accounts.end
        if end is None:
            outcome = self._trained()
        elif end.outcome is None:  # only Optuna was not told yet
            raise optuna.TrialPruned(end.pruned)
        else:
            outcome = end.outcome
        self._trial.set_user_attr(FINAL_RATE, outcome.lr)
        # The last step alone can break the weights: its loss was finite, theirs is not.
        if outcome.diverged or not isfinite(outcome.validation.loss):
            self._trial.set_user_attr(REASON, "diverged")
            self._trial.set_user_attr(PVALUE, 1.0)
            raise optuna.TrialPruned("diverged")
        self.validation_loss = outcome.validation.loss
        metric = self._what.task.metric
        self._conclude(  # validation was told at this step
            {
                "train/final_loss": outcome.train.loss,
                f"train/{metric}": outcome.train.metric,
                "test/loss": outcome.test.loss,
                f"test/{metric}": outcome.test.metric,
            },
            outcome.steps,
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
        """Settle the accounts, whatever ended the trial for good."""
        trial, run, accounts = self._trial, self._run, self._accounts
        if self._renewed is not None:
            self._renewed.close()
        if self._outbox is not None:
            self._outbox.drain()
        seconds = accounts.seconds
        trial.set_user_attr(STEPS, accounts.steps)
        trial.set_user_attr(SECONDS, seconds)
        if self._controller is not None and self._controller.windows:
            windows = self._controller.windows
            self.rows = [windows_row(trial.number, window) for window in windows]
            run.log_table("windows", pd.DataFrame(self.rows))
            run.set_tags({"lrsearch.decision": windows[-1].decision})
        reason = str(trial.user_attrs.get(REASON, ""))
        # The rate once more, so that its line reaches the end of the chart.
        rate = rate_of(self._optimizer)
        last = {"train/lr": rate, "steps": accounts.steps, "seconds": seconds}
        self._conclude(last, accounts.steps)
        if reason or self._again:  # whoever found the dead process's run may have given one
            run.set_tags({"lrsearch.reason": reason})
        if self._kept is not None:
            began = time.perf_counter()
            self._draw(self._kept, status, reason)
            self.drawing_seconds = time.perf_counter() - began
        run.finish(status)
        self._watcher.trial_ended(self._what.name, status, reason)

    def leave(self) -> None:
        """Somebody else goes on with the trial: its run stays open."""
        if self._renewed is not None:
            self._renewed.close()
        self._run.leave()

    def _make_keeper(self, keeping: Keeping) -> Keeper:
        parts: dict[str, Part] = {"accounts": self._accounts, "curve": self._curve}
        if self._renewed is not None:
            parts["renewed"] = self._renewed
        if self._guard is not None:
            parts["guard"] = self._guard
        if self._outbox is not None:
            parts["outbox"] = self._outbox
        return Keeper(
            keeping.checkpoint,
            parts,
            seconds=keeping.seconds,
            steps=keeping.steps,
            interrupted=keeping.interrupted,
            saved=None if self._outbox is None else self._outbox.release,
        )

    def _trained(self) -> TrainingOutcome:
        """Train to the end, and keep how it ended before anybody is told."""
        what = self._what
        try:
            with suitable_threads(self.model, what.task.batch_size or len(what.data.train)):
                outcome = train(
                    what.task,
                    what.data,
                    model=self.model,
                    optimizer=self._optimizer,
                    seed=what.seed,
                    controller=self._controller,
                    observer=self,
                    check_every=1 if what.short else None,
                    keeper=self._keeper,
                    guard=self._guard,
                )
        except optuna.TrialPruned as error:
            if error is self._keeper.interruption:  # others have set their reason
                self._trial.set_user_attr(REASON, str(error))
            self._end(None, str(error))
            raise
        self._end(outcome)
        return outcome

    def _end(self, outcome: TrainingOutcome | None, pruned: str = "") -> None:
        self._accounts.close(outcome, pruned)
        # Now all is told: the file that stands in for a damaged one must have it too.
        self._keeper.save()
        self._keeper.save()

    def _conclude(self, metrics: dict[str, float], step: int) -> None:
        """Tell what the end of the training makes known."""
        end = self._accounts.end
        if self._outbox is None or end is None:
            self._run.log_metrics(metrics, step=step)
        else:
            self._outbox.log_metrics(metrics, step, timestamp=end.at)

    def _draw(self, kept: KeptCurve, status: RunStatus, reason: str) -> None:
        what = self._what
        windows = [] if self._controller is None else self._controller.windows
        words = f"{status}: {reason}" if reason else status
        title = (
            f"{what.task.name}, {what.name}, seed {what.seed}\n"
            f"lr = {self._trial.params[LR]:.4g}, {self._accounts.steps:,} steps, {words}"
        )
        figure = kept.figure(windows, what.settings, title)
        if figure is not None:
            log_picture(self._run, LOSS, figure)
            if status == "complete":
                self.figure = figure

    def stepped(self) -> None:
        """Charge a gradient step."""
        self._accounts.steps += 1

    def judged(self, progress: Progress) -> None:
        """Pass a judged window on to whoever watches."""
        self._watcher.trial_moved(progress)

    def recorded(self, losses: FloatArray, start: int, lr: float) -> None:
        """Log a stretch of the loss curve."""
        self._curve.extend(losses, start, lr)

    def validated(self, validation: Evaluation, progress: Progress) -> None:
        """Log the validation loss; let the study's pruner have its say where the plan wants it."""
        metric = self._what.task.metric
        self._teller.log_metrics(
            {"val/loss": validation.loss, f"val/{metric}": validation.metric}, step=progress.step
        )
        self._watcher.trial_moved(progress)
        if progress.risen and progress.step < progress.total:
            self._calm()
        if self._reporter is not None and self._reporter.rejects(validation.loss, progress.step):
            self._trial.set_user_attr(REASON, self._why_pruned(validation.loss))
            raise optuna.TrialPruned

    def _calm(self) -> None:
        """The validation loss rises: back to the best weights, at a lower rate."""
        assert self._guard is not None
        assert self._controller is not None
        since = self._guard.lowest_step
        self._guard.restore()
        self._controller.lower(f"validation loss rises since step {since}")

    def _why_pruned(self, loss: float) -> str:
        if not self._what.short:
            return "worse than the median trial"
        if not isfinite(loss):
            return "diverged"
        return f"tried for {TRY_EPOCHS} epochs: validation loss {loss:.4g}"

    def epoch_ended(self) -> None:
        """Renew the rate where the plan says so."""
        if self._renewed is not None:
            self._renewed.renew()
