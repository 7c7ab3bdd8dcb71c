"""Which Lipschitz rule a torch optimizer follows, read from its parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lrsearch.controllers.lipschitz import PAPERS_START, LipschitzRule
from lrsearch.errors import InvalidArgumentError, require_positive


def rule_of(
    optimizer: torch.optim.Optimizer,
    start: tuple[float, ...] = (),
    *,
    bias_correction: bool = True,
) -> LipschitzRule:
    """The update rule of a torch optimizer, by its first parameter group.

    Args:
        optimizer: SGD, RMSprop, Adam or AdamW.
        start: the means before the first estimate.
        bias_correction: of Adam's means.

    Raises:
        ValueError: if the papers have no rule for it, or ``start`` does not fit it.
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
        return LipschitzRule(
            "adam",
            beta1=beta1,
            beta2=beta2,
            eps=float(group["eps"]),
            start=start,
            corrected=bias_correction,
        )
    raise InvalidArgumentError(
        f"optimizer must be SGD, RMSprop, Adam or AdamW, got {type(optimizer).__name__}: "
        f"LipschitzLR has no update rule for it; ExpTest takes any optimizer"
    )


def from_papers_start(rule: LipschitzRule) -> LipschitzRule:
    """The rule with the papers' start, where they have one and none was given."""
    return rule if rule.start else replace(rule, start=PAPERS_START.get(rule.kind, ()))


def weight_decay_of(optimizer: torch.optim.Optimizer) -> float:
    """The largest L2 penalty of the groups that enters the gradient; 0 where it is decoupled."""
    return max(
        0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])
        for group in optimizer.param_groups
    )


def as_start(start: float | Sequence[float] | None) -> tuple[float, ...]:
    """One number or several as a tuple; () for None.

    Raises:
        ValueError: if one is not positive.
        TypeError: if one is no number.
    """
    if start is None:
        return ()
    if isinstance(start, (tuple, list)):
        return tuple(require_positive("start", number) for number in start)
    return (require_positive("start", start),)  # type: ignore[arg-type]  # checked there
