"""The largest stable learning rate of a torch optimizer at the present weights, from sharpness."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lrsearch.bounds.stability import averaged_limit, heavy_ball_limit, nesterov_limit
from lrsearch.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    require_at_least,
    require_not_negative,
    require_positive,
)
from lrsearch.training.hessian import LossHessian
from lrsearch.training.loop import LossFunction

Form: TypeAlias = Literal["gradient descent", "heavy ball", "nesterov", "moving average"]


@dataclass(frozen=True, slots=True)
class SharpnessBound:
    """Above which rate an optimizer is unstable at the present weights.

    Attributes:
        lr_max: the bound for the first parameter group's rate, the others keeping their ratios to
            it; infinity where no direction curves upwards, so that curvature bounds nothing.
        sharpness: the largest eigenvalue that it rests on, of the (preconditioned) Hessian with
            weight decay and the groups' ratios in it.
        residual: of the eigenvector: an eigenvalue lies within it.
        products: Hessian-vector products spent, each one pass over the batches.
        samples: rows in a pass.
        form: which limit was used: "gradient descent", "heavy ball", "nesterov" or "moving
            average" (of gradients, as in Adam).
        preconditioned: whether the Hessian was divided by an adaptive optimizer's denominator.
    """

    lr_max: float
    sharpness: float
    residual: float
    products: int
    samples: int
    form: Form
    preconditioned: bool


@dataclass(frozen=True, slots=True)
class _Update:
    """How an optimizer turns gradients into a step, denominators and decay aside."""

    form: Form
    momentum: float = 0.0
    dampening: float = 0.0

    def limit(self, sharpness: float) -> float:
        """The largest stable rate."""
        if self.form == "nesterov":
            return nesterov_limit(sharpness, self.momentum)
        if self.form == "moving average":
            return averaged_limit(sharpness, self.momentum)
        return heavy_ball_limit(sharpness, self.momentum, self.dampening)


def sharpness_bound(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    loss_function: LossFunction,
    batches: Iterable[Any],
    *,
    tolerance: float = 1e-3,
    max_products: int = 200,
    seed: int = 0,
) -> SharpnessBound:
    """Above which learning rate does this optimizer overshoot the loss at the present weights?

    lr_max is the limit of the optimizer's update (``lrsearch.bounds.heavy_ball_limit``,
    ``nesterov_limit``, ``averaged_limit``) at the largest eigenvalue of

        D^-1/2 R^1/2 (H + W) R^1/2 D^-1/2

    with H the Hessian of the mean loss, W the weight decay that is added to gradients, R the
    groups' rates relative to the first group's, and D what the optimizer divides by (Cohen et al.
    2022, arXiv 2207.14484; D = 1 for SGD). With the second moment v that it has gathered, or that
    the full gradient g would give it in its first step:

    - Adam, AdamW: D = sqrt(v_hat) + eps; before the first step v_hat = g^2. With ``amsgrad``, of
      the largest v.
    - RMSprop: D = sqrt(v) + eps; before the first step v = (1 - alpha) g^2. With ``centered``, the
      squared mean is taken off.

    AdamW's decay omega, which is no part of the gradient, adds R omega (1 + beta1) / (1 - beta1):
    with it the limit of ``averaged_limit`` is the same.

    Args:
        optimizer: SGD, with momentum, dampening, Nesterov or not; RMSprop; Adam; AdamW. Its
            parameters with ``requires_grad`` are those that count. Parameters that the loss does
            not use are left out, as the optimizer does.
        model: as for ``sharpness``, like the rest; stays as it is, as does the optimizer.
        loss_function: (outputs, targets) -> the mean loss over the batch's rows.
        batches: of (inputs, targets). The bound is that of full-batch steps over these; noise of
            smaller batches lowers what is stable.
        tolerance: of the eigenvalue's residual, relative.
        max_products: most Hessian-vector products.
        seed: of the random start and of random layers.

    Returns:
        The bound and what it rests on. It is exact for a quadratic loss, with D held still; for a
        network it holds where it was computed: sharpness moves in training, and D with it. D is
        small, and the bound low, where Adam has seen no step yet; RMSprop's lower still.

    Raises:
        ValueError: if the optimizer is of another kind, maximises, has groups that differ in
            momentum, or a first group without a positive rate; or as ``sharpness``.
        TypeError: if an argument or a batch is of the wrong kind.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batch = (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        >>> bound = sharpness_bound(optimizer, model, nn.functional.mse_loss, [batch])
        >>> round(bound.lr_max, 4), bound.form  # 2 (1 + 0.5) / 4
        (0.75, 'heavy ball')
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidTypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    require_positive("tolerance", tolerance)
    require_at_least("max_products", max_products, 1)
    update = _common_update(optimizer)
    first_rate = require_positive(
        "lr of the optimizer's first parameter group", float(optimizer.param_groups[0]["lr"])
    )
    chosen = [
        (group, parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    ]
    hessian = LossHessian(model, loss_function, batches, [p for _, p in chosen], seed=seed)
    scales: list[Tensor | None] = []
    shifts: list[Tensor | None] = []
    for (group, parameter), gradient in zip(chosen, hessian.gradients, strict=True):
        if gradient is None:
            scales.append(None)  # zeros: it does not move
            shifts.append(None)
            continue
        ratio = require_not_negative("lr of a parameter group", float(group["lr"])) / first_rate
        decay, decoupled = float(group["weight_decay"]), _decoupled(optimizer, group)
        values = parameter.detach().to(gradient)
        slope = gradient if decoupled else gradient + decay * values
        # What a unit of gradient moves each weight, per unit of the first group's rate.
        gain = ratio / _denominator(optimizer, group, parameter, slope)
        apart = ratio * decay * (1.0 + update.momentum) / (1.0 - update.momentum)
        scales.append(gain.sqrt())
        shifts.append(torch.full_like(gain, apart) if decoupled else gain * decay)
    scale, shift = hessian.flat(scales), hessian.flat(shifts)
    if not bool(torch.isfinite(scale).all()):
        raise InvalidArgumentError(
            "optimizer must divide by positive numbers, got a second moment of 0 with eps=0 (or "
            "one that is not finite); give it an eps"
        )
    pair = hessian.largest(
        scale=scale, shift=shift, tolerance=tolerance, max_products=max_products, seed=seed
    )
    return SharpnessBound(
        lr_max=update.limit(pair.value),
        sharpness=pair.value,
        residual=pair.residual,
        products=pair.passes,
        samples=hessian.samples,
        form=update.form,
        preconditioned=not isinstance(optimizer, torch.optim.SGD),
    )


def _common_update(optimizer: torch.optim.Optimizer) -> _Update:
    """The update that all groups share."""
    updates = [_update(optimizer, group) for group in optimizer.param_groups]
    if any(update != updates[0] for update in updates):
        raise InvalidArgumentError(
            f"optimizer must have the same momentum in all parameter groups, got {updates[0]} and "
            f"others; bound the groups one by one"
        )
    updates[0].limit(1.0)  # a momentum that is never stable is told before any pass
    return updates[0]


def _update(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> _Update:
    if group.get("maximize"):
        raise InvalidArgumentError(
            "optimizer must minimise, got maximize=True; minimise the negative loss instead"
        )
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return _Update("moving average", float(group["betas"][0]))
    if isinstance(optimizer, torch.optim.SGD | torch.optim.RMSprop):
        mu = float(group["momentum"])
        if mu == 0.0:
            return _Update("gradient descent")
        if group.get("nesterov"):
            return _Update("nesterov", mu)
        return _Update("heavy ball", mu, float(group.get("dampening", 0.0)))
    raise InvalidArgumentError(
        f"optimizer must be SGD, RMSprop, Adam or AdamW, got {type(optimizer).__name__}: the "
        f"stable rate of its update is not known here"
    )


def _decoupled(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Whether weight decay acts beside the gradient. Older torch has no flag for it."""
    return bool(
        group.get("decoupled_weight_decay", False) or isinstance(optimizer, torch.optim.AdamW)
    )


def _denominator(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor, slope: Tensor
) -> Tensor:
    """What a gradient is divided by, shaped as the parameter: D.

    ``slope`` is the full gradient, coupled decay included, in the precision of the result.
    """
    if isinstance(optimizer, torch.optim.SGD):
        return torch.ones_like(slope)
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    if isinstance(optimizer, torch.optim.RMSprop):
        fresh = 1.0 - float(group["alpha"])
        seen = "square_avg" in state
        moment = state["square_avg"].to(slope) if seen else fresh * slope.square()
        if group["centered"]:
            mean = state["grad_avg"].to(slope) if seen else fresh * slope
            moment = (moment - mean.square()).clamp(min=0.0)
    elif "exp_avg_sq" in state and float(state["step"]) > 0:
        name = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
        moment = state[name].to(slope) / (1.0 - float(group["betas"][1]) ** float(state["step"]))
    else:
        moment = slope.square()
    return moment.sqrt() + float(group["eps"])
