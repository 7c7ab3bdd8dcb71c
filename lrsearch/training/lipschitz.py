"""LipschitzLR around a torch optimizer: the shell that holds state; controllers do the thinking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lrsearch.bounds.losses import LOSSES
from lrsearch.controllers.lipschitz import (
    SQUARED,
    GradientBound,
    LipschitzRule,
    LipschitzState,
    bound_gradient,
    first_rate,
    renew,
)
from lrsearch.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    require_at_least,
    require_choice,
    require_not_negative,
    require_positive,
)
from lrsearch.tracking import StepTracker
from lrsearch.training.activations import NORMS, ActivationNorms, frobenius_norm
from lrsearch.training.optimizer_rules import (
    as_start,
    from_papers_start,
    rule_of,
    weight_decay_of,
)
from lrsearch.training.snapshot import scale_rates
from lrsearch.training.wrappers import largest_of_all, last_linear, unwrapped, whole

FIRST_EPOCHS = ("optimizer", "batch", "papers")


@dataclass(frozen=True, slots=True)
class LipschitzEstimate:
    """What an epoch showed, and the rate that follows.

    Attributes:
        k_z: largest norm of a batch of inputs to the last layer.
        weight_bound: largest norm of any parameter.
        lipschitz: L; NaN where there is no bound.
        lr: rate of the first parameter group from here on.
        epoch: the epoch that it is of, counted from 0; -1 for one batch before the first step.
        reason: why the rate was kept; "" if it was renewed.
    """

    k_z: float
    weight_bound: float
    lipschitz: float
    lr: float
    epoch: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    k_z: float
    weight_bound: float
    bound: GradientBound


class LipschitzLR:
    """Sets an optimizer's rate to 1 / L, renewed once an epoch.

    L bounds the gradient with respect to the last linear layer's weights, from the largest
    norm K_z of a batch of its inputs ([L] sections 4 to 6; the formulas stand in
    ``lrsearch.bounds.lipschitz_constant`` and ``lrsearch.controllers.lipschitz``). A hook notes
    K_z while the model trains; nothing waits for the device until ``step()``.

    Call ``step()`` after each epoch. 1 / L is a heuristic without a safeguard: see
    docs/lipschitz.md. Nothing changes for gradient accumulation: the bound of the micro-batches
    bounds their mean as well.

    Args:
        optimizer: SGD (with momentum: AdaMo), RMSprop, Adam or AdamW (Auto-Adam); its groups'
            rates keep their ratios, the first has the rate above.
        model: the model, bare, compiled or in a parallel wrapper. Processes under
            DistributedDataParallel or ``fully_shard`` call ``step()`` together and agree on the
            largest bound.
        loss: "cross_entropy", "binary_cross_entropy" or "mse" (1/(2m) times the sum of squares),
            means over the rows.
        classes: number of classes; None: the last layer's outputs.
        batch_size: rows per gradient step; None: the most rows seen at once.
        weight_decay: lambda of lambda/2 ‖w‖^2; None: the largest of the optimizer's groups (0
            where it is decoupled from the gradient, as in AdamW).
        exact: no hook; ``step(batches)`` runs a pass over the data in eval mode, as the papers'
            code does, and may come before the first epoch.
        layer: the last layer, or its name, where it is not the last ``nn.Linear``.
        target_norm: for "mse": norm of a batch of targets; None counts as 0, so L is that of
            targets around zero.
        loss_scale: the loss is so many times the papers': 2 for ``nn.MSELoss`` on one output.
        tikhonov: ‖Gamma^T Gamma‖ of a penalty ‖Gamma w‖^2 in the loss; see
            ``lrsearch.bounds.tikhonov_norm``.
        supremum: a bound for any output instead of the papers' gradient at a uniform one.
        norm: K_z of a batch: "frobenius" (the papers' code) or "unit" (their text: the largest
            norm of one unit's activations; smaller, so the rate is larger).
        squared: for RMSprop and Adam, the bound on the squared gradient: "norm" (the text; rates
            of about 1, which a deep model does not bear), "elementwise" (the code) or "mean" (of
            one entry: what these optimizers divide by).
        bias_correction: of Adam's means; False lets them grow from zero, as the papers' code.
        first_epoch: where its rate comes from: "optimizer" (left as it is), "batch" (an estimate
            from the first batch that is trained on, set before the optimizer's first step, and
            forgotten by the means) or "papers" (plain SGD: as "batch"; momentum: x, AdaMo's K too;
            RMSprop 1e-3; Adam: of K1 = 1, K2 = 1e-6).
        start: K before the first estimate: a number (momentum: x of [L] 7.4; RMSprop) or two
            (Adam: K1, K2). None: the papers' with ``first_epoch="papers"``, else none.
        tracker: a run of an experiment tracker that gets constant, K_z and rate.

    Raises:
        ValueError: if an option is outside what is allowed, the optimizer is another one, or the
            model has no linear layer.
        TypeError: if optimizer, model or layer is something else.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        loss: str = "cross_entropy",
        classes: int | None = None,
        batch_size: int | None = None,
        weight_decay: float | None = None,
        exact: bool = False,
        layer: str | nn.Module | None = None,
        target_norm: float | None = None,
        loss_scale: float = 1.0,
        tikhonov: float = 0.0,
        supremum: bool = False,
        norm: str = "frobenius",
        squared: str = "norm",
        bias_correction: bool = True,
        first_epoch: str = "optimizer",
        start: float | Sequence[float] | None = None,
        tracker: StepTracker | None = None,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidTypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if not isinstance(model, nn.Module):
            raise InvalidTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        for number, group in enumerate(optimizer.param_groups):
            require_positive(f"lr of the optimizer's parameter group {number}", float(group["lr"]))
        self._loss = require_choice("loss", loss, LOSSES)
        self._layer = last_linear(model, layer)
        self._classes = self._known_classes(classes)
        self._batch_size = (
            None if batch_size is None else require_at_least("batch_size", batch_size, 1)
        )
        self._weight_decay = (
            None if weight_decay is None else require_not_negative("weight_decay", weight_decay)
        )
        self._target_norm = require_not_negative("target_norm", target_norm or 0.0)
        self._loss_scale = require_positive("loss_scale", loss_scale)
        self._tikhonov = require_not_negative("tikhonov", tikhonov)
        self._supremum, self._exact = supremum, exact
        self._squared = require_choice("squared", squared, SQUARED)
        self._first_epoch = require_choice("first_epoch", first_epoch, FIRST_EPOCHS)
        if exact and first_epoch == "batch":
            raise InvalidArgumentError(
                "first_epoch must not be 'batch' with exact=True: "
                "call step(batches) before the first epoch instead"
            )
        self._start, self._bias_correction = as_start(start), bias_correction
        self._optimizer, self._wrapped, self._model = optimizer, model, unwrapped(model)
        rule = self._rule()  # refuses what has no rule
        self._tracker = tracker
        self._state = LipschitzState()
        self._steps = self._epochs = 0
        self._last: LipschitzEstimate | None = None
        self._norms = ActivationNorms(
            norm=require_choice("norm", norm, NORMS),
            outputs=loss == "mse",
            squares=squared == "elementwise",
            training_only=not exact,
        )
        self._handles = [optimizer.register_step_post_hook(self._count)]
        self._pending: RemovableHandle | None = None
        self._settled = False  # the first rate is set, and its hook may go
        if not exact:
            self._handles += self._norms.attach(self._layer)
        rate = first_rate(rule) if first_epoch == "papers" else None
        if rate is not None:
            self._set_rate(rate)
        elif first_epoch != "optimizer" and not exact:
            self._pending = optimizer.register_step_pre_hook(self._before_the_first_step)

    @property
    def last(self) -> LipschitzEstimate | None:
        """The last estimate; None before the first."""
        return self._last

    @property
    def lr(self) -> float:
        """Present learning rate of the first parameter group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, batches: Iterable[Any] | None = None) -> LipschitzEstimate:
        """Renew the bound at an epoch's end, and set the rate.

        Args:
            batches: with ``exact=True``, and only then: batches of inputs, or a loader whose
                batches are tuples that start with the inputs. Sequential, without augmentation,
                as large as those of training.

        Returns:
            The estimate. Where it is unusable (all inputs zero, NaN), the rate stays and
            ``reason`` says why.

        Raises:
            ValueError: if nothing was seen since the last call, or ``batches`` is missing or not
                wanted.
        """
        if (batches is not None) != self._exact:
            raise InvalidArgumentError(
                f"batches must be given with exact=True and only then, got {type(batches).__name__}"
                f" with exact={self._exact}"
            )
        if batches is not None:
            self._norms.clear()
            self._pass_over(batches)
        seen = self._look()
        if seen is None:
            raise InvalidArgumentError(
                "step() needs at least one batch through the last layer since the last call "
                "(in training mode, with gradients, unless exact=True); got none; if it is not the "
                "layer that makes the outputs, pass layer="
            )
        self._drop_pending()
        self._state, rate, reason = renew(self._rule(), self._state, seen.bound)
        last = self._adopt(seen, rate, reason, epoch=self._epochs)
        self._epochs += 1
        self._norms.clear()
        return last

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly, within an epoch too; plain values."""
        return {
            "loss": self._loss,
            "kind": self._rule().kind,
            "state": self._state.as_dict(),
            "steps": self._steps,
            "epochs": self._epochs,
            "lr": self.lr,
            "norms": self._norms.state_dict(),
            "last": None if self._last is None else asdict(self._last),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``. Load the model's and the optimizer's beside it.

        Raises:
            ValueError: if the state was saved with another loss or kind of optimizer.
        """
        saved, present = (state["loss"], state["kind"]), (self._loss, self._rule().kind)
        if saved != present:
            raise InvalidArgumentError(
                f"state_dict was saved with {saved}, but this LipschitzLR has {present}"
            )
        self._state = LipschitzState(**state["state"])
        self._steps, self._epochs = int(state["steps"]), int(state["epochs"])
        self._norms.load_state_dict(state["norms"])
        last = state["last"]
        self._last = None if last is None else LipschitzEstimate(**last)
        self._set_rate(state["lr"])
        if self._steps > 0 or self._epochs > 0:
            self._drop_pending()

    def close(self) -> None:
        """Remove the hooks; the rate stays."""
        self._drop_pending()
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> LipschitzLR:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _known_classes(self, classes: int | None) -> int | None:
        if self._loss != "cross_entropy":
            return None
        if classes is None and self._layer.out_features < 2:
            raise InvalidArgumentError(
                "the last layer has 1 output, so cross_entropy has no classes: "
                "pass loss='binary_cross_entropy', or layer= or classes="
            )
        return require_at_least(
            "classes", self._layer.out_features if classes is None else classes, 2
        )

    def _rule(self) -> LipschitzRule:
        """As the optimizer is now: schedulers may move its momentum."""
        rule = rule_of(self._optimizer, self._start, bias_correction=self._bias_correction)
        return from_papers_start(rule) if self._first_epoch == "papers" else rule

    def _look(self) -> _Seen | None:
        """What was seen so far, as a bound of the gradient; None if nothing was."""
        largest = self._norms.largest()
        # In one order everywhere: processes that train together exchange them.
        rows, *norms = largest_of_all(self._wrapped, [float(self._norms.rows), *largest.values()])
        if rows == 0:
            return None
        largest = dict(zip(largest, norms, strict=True))
        weight_bound = self._weight_bound()
        decay = self._weight_decay
        bound = bound_gradient(
            self._loss,
            batch_size=self._batch_size or int(rows),
            k_z=largest["k_z"],
            weight_norm=weight_bound,
            weight_decay=weight_decay_of(self._optimizer) if decay is None else decay,
            tikhonov=self._tikhonov,
            classes=self._classes,
            k_a=largest.get("k_a"),
            target_norm=self._target_norm if self._loss == "mse" else None,
            loss_scale=self._loss_scale,
            supremum=self._supremum,
            squared=self._squared,
            k_squared=largest.get("k_squared"),
            entries=self._layer.weight.numel(),
        )
        return _Seen(largest["k_z"], weight_bound, bound)

    def _adopt(self, seen: _Seen, rate: float | None, reason: str, epoch: int) -> LipschitzEstimate:
        """Set the rate, if there is one, and say so."""
        if rate is not None:
            self._set_rate(rate)
        kept = f"kept the rate: {reason}" if reason else ""
        last = LipschitzEstimate(
            seen.k_z, seen.weight_bound, seen.bound.lipschitz, self.lr, epoch, kept
        )
        self._last = last
        self._log(last)
        return last

    def _before_the_first_step(self, *_: Any) -> None:
        seen = self._look()
        if seen is None or self._settled:
            return  # None where a closure has not run yet: the next step will do
        self._settled = True
        _forgotten, rate, reason = renew(self._rule(), LipschitzState(), seen.bound)
        self._adopt(seen, rate, reason, epoch=-1)

    def _drop_pending(self) -> None:
        if self._pending is not None:
            self._pending.remove()
            self._pending = None

    def _weight_bound(self) -> float:
        norms = [frobenius_norm(p) for p in self._model.parameters()]
        # To one device and type first: a model may be spread over several.
        home = self._layer.weight.device
        return float(torch.stack([whole(n).to(home, torch.float32) for n in norms]).max())

    def _set_rate(self, rate: float) -> None:
        scale_rates(self._optimizer, rate / self.lr)
        first = self._optimizer.param_groups[0]
        if not isinstance(first["lr"], Tensor):
            first["lr"] = rate  # the same up to rounding

    def _pass_over(self, batches: Iterable[Any]) -> None:
        """The papers' pass: eval mode, no gradients; everything is left as it was."""
        handles = self._norms.attach(self._layer)
        try:
            with _evaluating(self._model), torch.inference_mode():
                for batch in batches:
                    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
                    self._model(inputs.to(self._layer.weight.device))
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, *_: Any) -> None:
        self._steps += 1
        if self._settled:
            # Not in the hook itself: torch goes through all of them, others' too, at that moment.
            self._drop_pending()

    def _log(self, estimate: LipschitzEstimate) -> None:
        if self._tracker is not None:
            metrics = {
                "lipschitz/constant": estimate.lipschitz,
                "lipschitz/k_z": estimate.k_z,
                "lipschitz/lr": estimate.lr,
            }
            # The step from which on the rate is in force.
            self._tracker.log_metrics(metrics, step=self._steps)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; each module's own mode after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
