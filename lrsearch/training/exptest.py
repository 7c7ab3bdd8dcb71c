"""ExpTest around any torch optimizer: the shell that holds state; controllers do the thinking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrsearch.controllers.exptest import (
    Decision,
    ExpTestSettings,
    ExpTestState,
    correct_window,
    diverged,
    due_step,
    is_complete,
    judge,
    lowered,
    open_window,
)
from lrsearch.errors import InvalidArgumentError, InvalidTypeError, require_positive
from lrsearch.stats.convergence import Mode
from lrsearch.tracking import StepTracker
from lrsearch.training.curve import CurveLog
from lrsearch.training.gradients import GradientSums
from lrsearch.training.recorder import LossRecorder, make_recorder
from lrsearch.training.snapshot import Snapshot, scale_rates
from lrsearch.windows import WindowStats

if TYPE_CHECKING:
    import optuna

# Of a run's end, over which the rate falls to 0; and in how many stairs a whole run would.
ANNEAL = 0.4
STAIRS = 50


class ExpTest:
    """Finds and tunes the learning rate of an optimizer while it trains.

    It starts at the optimizer's present rates, which should be an upper bound (see
    ``lrsearch.bounds.max_learning_rate``). *Searching*: after a window of steps an F-test asks
    whether the loss decays exponentially; if it does not, or diverges, training starts over from
    the initial weights at ``beta`` times the rate. *Training*: after each window a test of the
    slope asks whether the loss still falls; at a plateau the rate is multiplied by ``beta``. ([E],
    Algorithm 1; what ``mode="robust"`` does beyond it stands in docs/exptest.md.)

    Call ``step(loss)`` once per optimizer step, after ``optimizer.step()`` and before
    ``zero_grad()``; with gradient accumulation once per update, with the mean of its losses.
    Nothing waits for the device between window ends.

    Args:
        optimizer: any torch optimizer; its groups' rates keep their ratios.
        model: the model, so that a restart restores buffers (batch-norm statistics) too. Without it
            only the optimizer's own parameters are restored.
        alpha: level of the tests, in (0, 1).
        beta: factor of the rate at a restart or a decay, in (0, 1).
        mode: "robust" or "paper".
        trial: an Optuna trial; then windows are recorded on it, and where a restart would follow
            ``optuna.TrialPruned`` is raised: the next trial is the restart.
        full_batch: every step sees the whole data set, so windows need no correction.
        total_steps: steps of the whole run, restarts included; bounds the windows.
        anneal: share of ``total_steps`` at the end over which the rate falls to 0 by a line. None:
            0.4 in mode "robust" where ``total_steps`` is known and no scheduler shapes the rate,
            else 0.
        raced: the rate has won a race (``lrsearch.training.probes``): its first window is recorded,
            and rejects it only if it diverges.
        tracker: a run of an experiment tracker that gets losses, rates and windows.
        schedulers: learning-rate schedulers of the loop; a restart winds them back, and decays
            scale their base rates, so that both can change the rate.
        scaler: the loop's ``torch.amp.GradScaler``: steps that it skips do not spoil the
            correction.

    Raises:
        ValueError: if an option is outside what is allowed, or a rate is not positive.
        TypeError: if optimizer or model is something else.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        model: nn.Module | None = None,
        alpha: float = 0.05,
        beta: float = 0.33,
        mode: Mode = "robust",
        trial: optuna.trial.BaseTrial | None = None,
        full_batch: bool = False,
        total_steps: int | None = None,
        anneal: float | None = None,
        raced: bool = False,
        tracker: StepTracker | None = None,
        schedulers: Any = (),
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidTypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if model is not None and not isinstance(model, nn.Module):
            raise InvalidTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if anneal is None:
            shaped = mode == "paper" or total_steps is None or bool(schedulers)
            anneal = 0.0 if shaped else ANNEAL
        for number, group in enumerate(optimizer.param_groups):
            require_positive(f"lr of the optimizer's parameter group {number}", float(group["lr"]))
        self._settings = ExpTestSettings(
            alpha=alpha,
            beta=beta,
            mode=mode,
            full_batch=full_batch,
            total_steps=total_steps,
            anneal=anneal,
            raced=raced,
        )
        self._optimizer = optimizer
        self._schedulers: Sequence[Any] = (
            schedulers if isinstance(schedulers, (list, tuple)) else (schedulers,)
        )
        self._scaler = scaler
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # A trial is pruned where others restart: it never goes back.
        self._snapshot = None if trial is not None else Snapshot(optimizer, model, self._schedulers)
        self._recorder: LossRecorder | None = None
        self._curve = CurveLog(tracker, total_steps) if tracker is not None else None
        self._tracker = tracker
        self._trial_recorder = None
        if trial is not None:
            # Here alone: users without a study need no Optuna.
            from lrsearch.studies.record import TrialRecorder

            self._trial_recorder = TrialRecorder(trial)
        self._state = ExpTestState()
        self._steps = 0
        self._windows: list[WindowStats] = []
        self._sums = self._new_sums()
        self._due = due_step(self._settings, self._state)
        self._rate = float(optimizer.param_groups[0]["lr"])
        self._steady = Decision("continue", self._rate)
        self._seen_rate = optimizer.param_groups[0]["lr"]
        self._share = 1.0  # of the rate without annealing
        self._lower_at = self._settings.annealing_from
        self._stretches: list[tuple[int, float]] = []  # where a rate ended, since the last log
        self._told = 0

    @property
    def windows(self) -> list[WindowStats]:
        """Every look at a window so far."""
        return list(self._windows)

    @property
    def steps(self) -> int:
        """Steps taken so far, restarts included."""
        return self._steps

    @property
    def phase(self) -> str:
        """Either "searching", until a rate has passed, or "training"."""
        return self._state.phase

    @property
    def lr(self) -> float:
        """Present learning rate of the first parameter group."""
        rate = self._optimizer.param_groups[0]["lr"]
        # A rate that is a tensor lives on the device: reading it there would wait for it.
        return self._rate if isinstance(rate, Tensor) else float(rate)

    def step(self, loss: Tensor | float) -> Decision:
        """Take note of one step's loss and, at a window's end, decide.

        Args:
            loss: scalar tensor on any device, or a float.

        Returns:
            The decision; its kind is "continue" between window ends.

        Raises:
            optuna.TrialPruned: with a trial, where the rate is rejected.
            ValueError, TypeError: if loss is not a scalar.
        """
        if self._state.stopped:
            return self._steady
        recorder = self._recorder
        if recorder is None:
            recorder = self._recorder = make_recorder(loss)
        hopeless = recorder.append(loss)
        if self._sums is not None:
            self._sums.add()
        self._steps += 1
        if hopeless:
            values = recorder.values()
            return self._carry_out(*diverged(self._settings, self._state, values, self.lr))
        if self._steps >= self._due:
            return self._reach_boundary(recorder)
        if self._steps >= self._lower_at:
            self._anneal()
        rate = self._optimizer.param_groups[0]["lr"]
        if rate is not self._seen_rate:  # a scheduler of the loop moved it
            self._seen_rate, self._steady = rate, Decision("continue", self.lr)
        return self._steady

    def lower(self, reason: str) -> Decision:
        """Decay the rate for a reason of the caller's, such as a validation loss that rises.

        The present window ends here, whatever it would have shown; while the rate is searched, that
        accepts it.

        Args:
            reason: in a few words, for the record.

        Returns:
            The decision; "stop" once the budget is spent.
        """
        if self._state.stopped or self._recorder is None:
            return self._steady
        self._read_rate()
        return self._carry_out(
            *lowered(self._settings, self._state, self._recorder.values(), self.lr, reason)
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly, restarts included; plain values and tensors."""
        losses = [] if self._recorder is None else self._recorder.values().tolist()
        return {
            "settings": asdict(self._settings),
            "state": self._state.as_dict(),
            "steps": self._steps,
            "rate": self._rate,
            "share": self._share,
            "lower_at": self._lower_at,
            "stretches": list(self._stretches),
            "told": self._told,
            "losses": losses,
            "windows": [window.as_dict() for window in self._windows],
            "sums": None if self._sums is None else self._sums.state_dict(),
            "snapshot": None if self._snapshot is None else self._snapshot.state_dict(),
            "curve": None if self._curve is None else self._curve.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``. Load the model's and the optimizer's beside it.

        Raises:
            ValueError: if the state was saved with other settings, or with a trial and this
                ExpTest has none.
        """
        saved = ExpTestSettings(**state["settings"])
        if saved != self._settings:
            raise InvalidArgumentError(
                f"state_dict was saved with {saved}, but this ExpTest has {self._settings}"
            )
        if self._snapshot is not None and state["snapshot"] is None:
            raise InvalidArgumentError(
                "state_dict was saved with a trial and holds no point of restart: pass trial= to "
                "this ExpTest too"
            )
        self._state = ExpTestState(**state["state"])
        self._steps = int(state["steps"])
        self._rate = float(state["rate"])
        self._share = float(state["share"])
        self._stretches = [(int(step), float(rate)) for step, rate in state["stretches"]]
        self._told = int(state["told"])
        self._lower_at = state["lower_at"]
        self._windows = [WindowStats(**window) for window in state["windows"]]
        if self._snapshot is not None:
            self._snapshot.load_state_dict(state["snapshot"])
        if self._curve is not None and state.get("curve") is not None:
            self._curve.load_state_dict(state["curve"])
        self._sums = None
        if state["sums"] is not None:
            self._sums = self._new_sums()
            if self._sums is not None:
                self._sums.load_state_dict(state["sums"])
        self._recorder = None
        if state["losses"]:
            self._recorder = make_recorder(self._parameters[0].detach().flatten()[:1])
            self._recorder.load(state["losses"])
        self._due = due_step(self._settings, self._state)
        self._seen_rate = self._optimizer.param_groups[0]["lr"]
        self._steady = Decision("stop" if self._state.stopped else "continue", self.lr)

    def _reach_boundary(self, recorder: LossRecorder) -> Decision:
        """The machine wants to be asked: the only place that waits for the device."""
        settings, losses = self._settings, recorder.values()
        self._read_rate()
        if self._state.raw_length is None:
            first = float(losses[0])
            self._state = open_window(
                settings, self._state, initial_loss=first, lr=self.lr, step=self._steps
            )
        raw = self._state.raw_length or 0
        if self._state.length is None and self._steps - self._state.start >= raw:
            correction = 1.0 if self._sums is None else self._sums.correction()
            self._state = correct_window(settings, self._state, correction=correction)
        if self._state.length is not None:
            self._sums = None
        if is_complete(settings, self._state, self._steps):
            return self._carry_out(*judge(settings, self._state, losses, self.lr))
        return self._go_on(Decision("continue", self.lr))

    def _carry_out(self, state: ExpTestState, decision: Decision) -> Decision:
        """Make a decision true: rates, weights, records."""
        window = decision.window
        assert window is not None
        kept = self._state
        self._state = state
        self._windows.append(window)
        self._log(window)
        if state.start != kept.start and self._recorder is not None:
            self._recorder.clear()
        if self._trial_recorder is not None:
            self._trial_recorder.window(window)
        if decision.kind == "restart":
            if self._out_of_budget():
                return self._go_on(replace(decision, kind="stop", lr=self.lr))
            assert self._snapshot is not None  # with a trial, its recorder has raised
            self._snapshot.restore()
            scale_rates(self._optimizer, state.factor, self._schedulers)
            self._share = 1.0
        elif decision.kind == "decay":
            scale_rates(self._optimizer, self._settings.beta, self._schedulers)
        self._read_rate()
        decision = replace(decision, lr=self._rate)
        if state.raw_length is None and not state.stopped:
            self._sums = self._new_sums()
            if state.initial_loss is not None:
                self._state = open_window(
                    self._settings, state, initial_loss=0.0, lr=self.lr, step=self._steps
                )
        return self._go_on(decision)

    def _go_on(self, decision: Decision) -> Decision:
        """Plan the next boundary; the last step of the budget is the end."""
        if self._steps >= self._lower_at:
            self._anneal()
            decision = replace(decision, lr=self._rate)
        self._due = due_step(self._settings, self._state)
        if self._out_of_budget() and decision.kind != "stop":
            tested = self._state.phase == "training"
            reason = "budget spent" if tested else "budget spent before a rate passed its test"
            decision = replace(decision, kind="stop", reason=reason)
        if decision.kind == "stop":
            self._tell(self._state.start, self.lr)  # nobody judges these
            # Trackers that send in the background are given the time to end with the training.
            getattr(self._tracker, "flush", lambda: None)()
            self._state = replace(self._state, stopped=True)
            self._sums = None
            self._steady = Decision("stop", self.lr, None, decision.reason)
        else:
            self._seen_rate = self._optimizer.param_groups[0]["lr"]
            self._steady = Decision("continue", self.lr)
        return decision

    def _anneal(self) -> None:
        """Lower the rate towards 0, in stairs. Never waits for the device."""
        total = self._settings.total_steps or 0
        self._lower_at = self._steps + max(1, total // STAIRS)
        share = self._settings.share_at(self._steps)
        if share == self._share:
            return
        if self._curve is not None:
            self._stretches.append((self._steps, self._rate))
        scale_rates(self._optimizer, share / self._share, self._schedulers)
        self._rate *= share / self._share
        self._share = share

    def _tell(self, start: int, lr: float) -> None:
        """Log the losses since step ``start`` that were not logged yet, at the rates they met."""
        if self._curve is None or self._recorder is None:
            return
        losses = self._recorder.values()
        end = start + losses.size
        at = max(start, self._told)
        for stop, rate in [*self._stretches, (end, lr)]:
            if stop > at:
                self._curve.extend(losses[at - start : stop - start], at, rate)
                at = stop
        self._told = max(at, self._told)
        self._stretches = []

    def _read_rate(self) -> None:
        """The rate as it is: schedulers of the loop may have moved it. May wait for the device."""
        self._rate = float(self._optimizer.param_groups[0]["lr"])

    def _out_of_budget(self) -> bool:
        total = self._settings.total_steps
        return total is not None and self._steps >= total

    def _new_sums(self) -> GradientSums | None:
        # A race has settled the rate: its first window is recorded, and need not wait for noise.
        if self._settings.full_batch or self._settings.raced:
            return None
        return GradientSums(self._parameters, skip_nonfinite=self._scaler is not None)

    def _log(self, window: WindowStats) -> None:
        if self._tracker is None:
            return
        self._tell(window.start, window.lr)
        self._tracker.log_metrics(window.as_metrics(), step=window.last_step)
