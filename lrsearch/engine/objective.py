"""One trial: a rate in, a validation loss out, everything on record."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from torch import nn

from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.attempt import Assignment, Attempt, Keeping
from lrsearch.engine.memory import out_of_memory
from lrsearch.engine.methods import LR, TRY_EPOCHS, Plan
from lrsearch.engine.progress import SearchWatcher
from lrsearch.engine.provenance import DataRecord
from lrsearch.engine.record import log_failure
from lrsearch.engine.start import Start
from lrsearch.figures.description import Figure
from lrsearch.studies.attributes import MULTIPLIER, REASON, STOP_REASON
from lrsearch.studies.rungs import read_rung
from lrsearch.tracking import RunStatus, RunTracker
from lrsearch.training.checkpoints import Checkpoint
from lrsearch.training.keeping import SECONDS as CHECKPOINT_SECONDS
from lrsearch.training.keeping import TrainingLeft
from lrsearch.training.loop import steps_per_epoch
from lrsearch.training.task import TaskData, TrainingTask


def _always() -> bool:
    return True


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
        chosen_loss: that trial's validation loss.
        drawing_seconds: what figures of trials took; no part of a search's price.
        keep_model: whether the best trial's model is kept.
        chosen_model: of the best trial so far, if this process trained it and models are kept.
        model_loss: that trial's validation loss.
        last: the last training that ended here.
        device: where models are trained; ``data`` is there already.
        device_label: how a person calls it; several processes may each see theirs as "cuda:0".
        checkpoints: folder with a file for each trial under way, ``trial-<number>.pt``; a trial
            that has one goes on from there. None to keep nothing.
        checkpoint_seconds: from one save to the next.
        checkpoint_steps: also save whenever so many steps were taken; None: not for that reason.
        interrupted: called after each gradient step; what it returns ends the training (see
            ``training.keeping.Keeper``).
        owned: whether the trial at hand is this process's. Where another worker has it, that one
            writes its record.
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
    device: str = "cpu"
    device_label: str = ""
    checkpoints: Path | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    checkpoint_steps: int | None = None
    interrupted: Callable[[], BaseException | None] | None = None
    owned: Callable[[], bool] = _always
    chosen_loss: float = inf
    last: Attempt | None = None

    def __call__(self, trial: optuna.Trial) -> float:
        """Train once, or go on; returns the validation loss.

        The trial's checkpoint stays: ``discard`` it once Optuna was told how the trial ended.

        Raises:
            optuna.TrialPruned: if the rate was rejected.
            TrainingLeft: if ``interrupted`` says so; the trial and its run stay open. Also if the
                trial is found to be another worker's; its run is left as that one wants it.
        """
        rate = trial.suggest_float(LR, self.plan.low, self.plan.high, log=True)
        run = self.run.child(
            f"{self.name_of(trial)}, seed {self.seed}",
            tags={"lrsearch.kind": self.kind, "lrsearch.method": self.method},
            uid=f"{self.uid}-{trial.number}" if self.uid else None,
            ready=self._require_owned,
        )
        run.log_params(
            {
                "lr": rate,
                "number": trial.number,
                "seed": self.seed,
                "device": self.device_label or self.device,
            }
        )
        if self.seen is not None:
            run.log_input(self.seen.name, self.seen.digest, profile=self.seen.profile)
        self.watcher.trial_started(self.name_of(trial), rate, self.steps_of(trial))
        status: RunStatus | None = "failed"
        attempt: Attempt | None = None
        try:
            attempt = self._attempt(trial, run, rate)
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
        except TrainingLeft:
            status = None
            raise
        except Exception as error:
            if isinstance(error, UpdateFinishedTrialError) or not self.owned():
                status = None
                raise _lost() from error
            told = out_of_memory(error, self.task, attempt)
            trial.set_user_attr(REASON, log_failure(run, told))
            raise told from (None if told is error else error)
        finally:
            self._end(attempt, run, status)

    def _require_owned(self) -> None:
        if not self.owned():
            raise _lost()

    def _end(self, attempt: Attempt | None, run: RunTracker, status: RunStatus | None) -> None:
        """Close a trial's run, or leave it open where there is no status."""
        if attempt is None:  # the user's model could not be built, or there was no need
            if status is None:
                run.leave()
            else:
                run.finish(status)
            return
        if status is None:
            attempt.leave()
            return
        try:
            attempt.close(status)
        except UpdateFinishedTrialError as error:
            attempt.leave()
            raise _lost() from error
        self._take_over(attempt)

    def discard(self, number: int) -> None:
        """Drop a trial's checkpoint: Optuna knows how the trial ended."""
        checkpoint = self._checkpoint(number)
        if checkpoint is not None:
            checkpoint.discard()

    def name_of(self, trial: optuna.Trial) -> str:
        """How a trial is called to a person."""
        place = read_rung(trial) if self.plan.controlled else None
        if place is not None:  # probes of a race have numbers too
            return f"{self.method} rung {place.rung}"
        kind = "try" if is_try(trial) else "trial"
        return f"{self.method} {kind} {trial.number}"

    def steps_of(self, trial: optuna.Trial) -> int:
        """Gradient steps that a trial has before it."""
        epochs = min(TRY_EPOCHS, self.task.epochs) if is_try(trial) else self.task.epochs
        return steps_per_epoch(self.task, self.data) * epochs

    def _attempt(self, trial: optuna.Trial, run: RunTracker, rate: float) -> Attempt:
        what = Assignment(
            task=self.task,
            data=self.data,
            plan=self.plan,
            settings=self.settings,
            seed=self.seed,
            start=self.start,
            name=self.name_of(trial),
            rate=rate,
            steps=self.steps_of(trial),
            short=is_try(trial),
            drawn=self.seen is not None and (self.plan.controlled or self.plan.renewed),
            device=self.device,
            device_label=self.device_label or self.device,
        )
        keeping = Keeping(
            checkpoint=self._checkpoint(trial.number),
            seconds=self.checkpoint_seconds,
            steps=self.checkpoint_steps,
            interrupted=self.interrupted,
        )
        return Attempt(what, trial, run, self.watcher, keeping)

    def _checkpoint(self, number: int) -> Checkpoint | None:
        if self.checkpoints is None:
            return None
        return Checkpoint(self.checkpoints / f"trial-{number}.pt")

    def _take_over(self, attempt: Attempt) -> None:
        """Keep what a study shows of its trials: the windows, and the best trial's figure."""
        self.last = attempt
        self.windows.extend(attempt.rows)
        self.drawing_seconds += attempt.drawing_seconds
        if attempt.figure is not None and attempt.validation_loss < self.chosen_loss:
            self.chosen_figure, self.chosen_loss = attempt.figure, attempt.validation_loss

    def _end_after(self, trial: optuna.Trial, rate: float) -> None:
        """The best try has been trained in full: nothing is left to do."""
        reason = f"trial {trial.number} trained the best try in full, lr={rate!r}"
        trial.study.set_user_attr(STOP_REASON, reason)
        with suppress(RuntimeError):  # not in study.optimize: whoever asks sees the reason
            trial.study.stop()


def _lost() -> TrainingLeft:
    return TrainingLeft("another worker has this trial", keep=False)


def is_try(trial: optuna.Trial) -> bool:
    """Whether a trial is a short try of a multiplier."""
    choice = trial.user_attrs.get(MULTIPLIER)
    return isinstance(choice, dict) and choice["try"] is not None
