"""LipschitzLR around a torch optimizer: the shell that holds state; controllers do the thinking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lrsearch.bounds.losses import LOSSES
from lrsearch.controllers.lipschitz import LipschitzRule, LipschitzState, bound_gradient, renew
from lrsearch.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    require_at_least,
    require_choice,
    require_not_negative,
    require_positive,
)
from lrsearch.tracking import RunTracker
from lrsearch.training.activations import (
    ActivationNorms,
    frobenius_norm,
    largest_of_all,
    last_linear,
    unwrapped,
)
from lrsearch.training.snapshot import scale_rates


@dataclass(frozen=True, slots=True)
class LipschitzEstimate:
    """What an epoch showed, and the rate that follows.

    Attributes:
        k_z: largest Frobenius norm of a batch of inputs to the last layer.
        weight_bound: largest norm of any parameter.
        lipschitz: L; NaN where there is no bound.
        lr: rate of the first parameter group from here on.
        epoch: which estimate this is, counted from 0.
        reason: why the rate was kept; "" if it was renewed.
    """

    k_z: float
    weight_bound: float
    lipschitz: float
    lr: float
    epoch: int
    reason: str = ""


class LipschitzLR:
    """Sets an optimizer's rate to 1 / L, renewed once an epoch.

    L bounds the gradient with respect to the last linear layer's weights, from the largest
    Frobenius norm K_z of a batch of its inputs ([L] sections 4 to 6; the formulas stand in
    ``lrsearch.bounds.lipschitz_constant`` and ``lrsearch.controllers.lipschitz``). A hook notes
    K_z while the model trains; nothing waits for the device until ``step()``. The first epoch has
    the optimizer's own rate, for which the papers try 0.1, 0.5 and 1 (with their velocity; that
    times 1 - momentum in torch) or 1e-3 (RMSprop).

    Call ``step()`` after each epoch. 1 / L is a heuristic without a safeguard: see
    docs/lipschitz.md. Nothing changes for gradient accumulation: the bound of the micro-batches
    bounds their mean as well.

    Args:
        optimizer: SGD (with momentum: AdaMo), RMSprop, Adam or AdamW (Auto-Adam); its groups'
            rates keep their ratios, the first has the rate above.
        model: the model, bare, compiled or in a parallel wrapper. Processes under
            DistributedDataParallel call ``step()`` together and agree on the largest bound.
        loss: "cross_entropy", "binary_cross_entropy" or "mse" (1/(2m) times the sum of squares;
            ``nn.MSELoss`` on one output has twice this gradient), means over the rows.
        classes: number of classes; None: the last layer's outputs.
        batch_size: rows per gradient step; None: the most rows seen at once.
        weight_decay: lambda of lambda/2 ‖w‖^2; None: the largest of the optimizer's groups (0
            where it is decoupled from the gradient, as in AdamW).
        exact: no hook; ``step(batches)`` runs a pass over the data in eval mode, as the papers'
            code does, and may come before the first epoch.
        layer: the last layer, or its name, where it is not the last ``nn.Linear``.
        target_norm: for "mse": norm of a batch of targets; None counts as 0, so L is that of
            targets around zero.
        supremum: a bound for any output instead of the papers' gradient at a uniform one.
        entrywise: for RMSprop and Adam: a bound on the mean square of one entry of the gradient in
            place of the papers' squared norm, whose rates of about 1 a deep model does not bear.
        start: K before the first estimate, as in the papers' code: a number (momentum, RMSprop) or
            two (Adam: K1, K2; they suggest 1 and 1e-6).
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
        supremum: bool = False,
        entrywise: bool = False,
        start: float | Sequence[float] | None = None,
        tracker: RunTracker | None = None,
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
        self._supremum, self._entrywise = supremum, entrywise
        self._start = _as_start(start)
        self._optimizer, self._wrapped, self._model = optimizer, model, unwrapped(model)
        self._rule()  # refuses what has no rule
        self._tracker = tracker
        self._exact = exact
        self._state = LipschitzState()
        self._steps = self._epochs = 0
        self._last: LipschitzEstimate | None = None
        self._norms = ActivationNorms(outputs=loss == "mse", training_only=not exact)
        self._handles = [optimizer.register_step_post_hook(self._count)]
        if not exact:
            self._handles += self._norms.attach(self._layer)

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
        found = (float(self._norms.rows), self._norms.k_z(), self._norms.k_a())
        rows, k_z, k_a = largest_of_all(self._wrapped, found)
        if rows == 0:
            raise InvalidArgumentError(
                "step() needs at least one batch through the last layer since the last call "
                "(in training mode, with gradients, unless exact=True); got none; if it is not the "
                "layer that makes the outputs, pass layer="
            )
        weight_norm = self._weight_bound()
        bound = bound_gradient(
            self._loss,
            batch_size=self._batch_size or int(rows),
            k_z=k_z,
            weight_norm=weight_norm,
            weight_decay=self._decay(),
            classes=self._classes,
            k_a=k_a if self._loss == "mse" else None,
            target_norm=self._target_norm if self._loss == "mse" else None,
            supremum=self._supremum,
            entries=self._layer.weight.numel() if self._entrywise else 1,
        )
        self._state, rate, reason = renew(self._rule(), self._state, bound)
        if rate is not None:
            self._set_rate(rate)
        kept = f"kept the rate: {reason}" if reason else ""
        last = LipschitzEstimate(k_z, weight_norm, bound.lipschitz, self.lr, self._epochs, kept)
        self._last = last
        self._epochs += 1
        self._norms.clear()
        self._log(last)
        return last

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly, within an epoch too; plain values."""
        return {
            "loss": self._loss,
            "kind": self._rule().kind,
            "state": self._state.as_dict(),
            "steps": self._steps,
            "epochs": self._epochs,
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

    def close(self) -> None:
        """Remove the hooks; the rate stays."""
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
        return rule_of(self._optimizer, self._start)

    def _decay(self) -> float:
        if self._weight_decay is not None:
            return self._weight_decay
        groups = self._optimizer.param_groups
        return max(
            0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])
            for group in groups
        )

    def _weight_bound(self) -> float:
        norms = [frobenius_norm(p) for p in self._model.parameters()]
        # To one device and type first: a model may be spread over several.
        home = self._layer.weight.device
        return float(torch.stack([n.to(home, torch.float32) for n in norms]).max())

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

    def _log(self, estimate: LipschitzEstimate) -> None:
        if self._tracker is not None:
            metrics = {
                "lipschitz/constant": estimate.lipschitz,
                "lipschitz/k_z": estimate.k_z,
                "lipschitz/lr": estimate.lr,
            }
            # The step from which on the rate is in force.
            self._tracker.log_metrics(metrics, step=self._steps)


def rule_of(optimizer: torch.optim.Optimizer, start: tuple[float, ...] = ()) -> LipschitzRule:
    """The update rule of a torch optimizer, by its first parameter group.

    Raises:
        ValueError: if the papers have no rule for it.
    """
    group = optimizer.param_groups[0]
    if isinstance(optimizer, torch.optim.SGD):
        mu = float(group["momentum"])
        if mu == 0:
            return LipschitzRule("sgd", start=start)
        # A constant g makes the velocity (1 - dampening) g / (1 - mu), Nesterov's too.
        gain = (1 - mu) / (1 - float(group["dampening"]))
        return LipschitzRule("momentum", beta1=mu, gain=gain, start=start)
    if isinstance(optimizer, torch.optim.RMSprop):
        if group["centered"]:
            raise InvalidArgumentError(
                "optimizer must not be a centered RMSprop: its variance has no lower bound that "
                "LipschitzLR could use; pass centered=False"
            )
        alpha, eps, gain = float(group["alpha"]), float(group["eps"]), 1 - float(group["momentum"])
        return LipschitzRule("rmsprop", beta2=alpha, eps=eps, gain=gain, start=start)
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        beta1, beta2 = (float(beta) for beta in group["betas"])
        return LipschitzRule("adam", beta1=beta1, beta2=beta2, eps=float(group["eps"]), start=start)
    raise InvalidArgumentError(
        f"optimizer must be SGD, RMSprop, Adam or AdamW, got {type(optimizer).__name__}: "
        f"LipschitzLR has no update rule for it; ExpTest takes any optimizer"
    )


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


def _as_start(start: float | Sequence[float] | None) -> tuple[float, ...]:
    if start is None:
        return ()
    if isinstance(start, (tuple, list)):
        return tuple(require_positive("start", number) for number in start)
    return (require_positive("start", start),)  # type: ignore[arg-type]  # checked there
