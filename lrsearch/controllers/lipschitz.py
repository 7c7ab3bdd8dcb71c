"""Lipschitz learning rates as pure update rules: (state, bound of the gradient) -> (state, rate).

Source: [L] LipschitzLR (Yedida & Saha), sections 5 and 6. The bounds are renewed once an epoch, and
averaged as the optimizer averages gradients. Rates are those of torch's update rules, which differ
from the papers' in two places:

* momentum: torch's velocity V <- mu V + g lacks the papers' factor 1 - mu, so their 1 / K is
  (1 - mu) / K here;
* RMSprop, Adam: torch divides by sqrt(S) + eps, the papers by sqrt(S + eps), so the term whose
  inverse is the rate is L / (sqrt(K) + eps).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isfinite, nan, sqrt
from typing import Any, Literal

from lrsearch.bounds.lipschitz import lipschitz_constant
from lrsearch.errors import InvalidArgumentError, require_choice, require_positive

RuleKind = Literal["sgd", "momentum", "rmsprop", "adam"]
_STARTS: dict[RuleKind, int] = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adam": 2}
# Bounds on the squared gradient: see bound_gradient.
SQUARED = ("norm", "elementwise", "mean")
# What [L] begins with: K = x of AdaMo on MNIST (7.3.1), K1 and K2 of Auto-Adam (section 9).
PAPERS_START: dict[RuleKind, tuple[float, ...]] = {"momentum": (0.1,), "adam": (1.0, 1e-6)}
_PAPERS_RMSPROP_RATE = 1e-3  # [L] section 8


@dataclass(frozen=True, slots=True)
class LipschitzRule:
    """How an optimizer turns gradients into steps, as far as the rate depends on it.

    Attributes:
        kind: "sgd", "momentum" (AdaMo), "rmsprop" (Algorithm 2) or "adam" (Auto-Adam).
        beta1: weight of the past in the mean of gradients (momentum, Adam), in [0, 1).
        beta2: weight of the past in the mean of squared gradients (RMSprop, Adam), in [0, 1).
        eps: the optimizer's, added to the root of the squares.
        gain: a constant gradient g moves the weights by rate * g / gain (RMSprop: by
            rate / gain); the rate is multiplied by it. 1 - mu for torch's velocity.
        start: K before the first estimate, as the papers' remedies for the first epoch have it:
            (K,) for momentum and RMSprop, (K1, K2) for Adam; () for none.
        corrected: Adam's means are divided by 1 - beta^t, as [L] 6.4 allows; False: they grow from
            zero, as in the papers' code. A start is never corrected.
    """

    kind: RuleKind
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    gain: float = 1.0
    start: tuple[float, ...] = ()
    corrected: bool = True

    def __post_init__(self) -> None:
        for number in self.start:
            require_positive("start", number)
        wanted = _STARTS[self.kind]
        if self.start and len(self.start) != wanted:
            raise InvalidArgumentError(
                f"start must hold {wanted} numbers for {self.kind}, got {self.start!r}"
            )


@dataclass(frozen=True, slots=True)
class LipschitzState:
    """What the rule remembers from epoch to epoch.

    Attributes:
        k1: mean of the bounds on the gradient (momentum, Adam), without bias correction.
        k2: mean of the bounds on the squared gradient (RMSprop, Adam), likewise.
        estimates: usable estimates so far.
    """

    k1: float = 0.0
    k2: float = 0.0
    estimates: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for a state_dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GradientBound:
    """What is known of the last layer's gradient.

    Attributes:
        lipschitz: L, bound on its norm; NaN if there is none.
        squared: bound on its square, in the sense that was asked for.
        reason: why there is no bound; "" if there is one.
    """

    lipschitz: float
    squared: float
    reason: str = ""


def bound_gradient(
    loss: str,
    *,
    batch_size: int,
    k_z: float,
    weight_norm: float,
    weight_decay: float = 0.0,
    tikhonov: float = 0.0,
    classes: int | None = None,
    k_a: float | None = None,
    target_norm: float | None = None,
    loss_scale: float = 1.0,
    supremum: bool = False,
    squared: str = "norm",
    k_squared: float | None = None,
    entries: int = 1,
) -> GradientBound:
    """How large is the gradient, and its square, with respect to the last layer's weights?

    L = D + P, with D the constant of the loss alone and P = lambda K + 2 K ‖Gamma^T Gamma‖ that of
    the penalties (:func:`lrsearch.bounds.lipschitz_constant`, whose arguments these are). For the
    square there are three readings of [L] 6.3:

    =============  ==========================================  ===================================
    squared        S                                           source
    =============  ==========================================  ===================================
    "norm"         D^2 + P^2                                   the text: (max ‖g‖)^2 without its
                                                               cross term 2 D P
    "elementwise"  (D / K_z)^2 max ‖a * a‖_F + 2 D P + P^2     Algorithm 3, line 8: max ‖g * g‖, as
                                                               the authors' code
    "mean"         (D^2 + P^2) / entries                       ours: the mean square of one entry,
                                                               which is what RMSprop and Adam
                                                               divide by
    =============  ==========================================  ===================================

    Args:
        squared: which one.
        k_squared: for "elementwise": max ‖a * a‖_F, the largest Frobenius norm of a batch of
            squared inputs of the last layer.
        entries: for "mean": how many weights the last layer has.

    Returns:
        The bounds. Numbers that give none, such as K_z = 0 (a dead layer) or NaN (weights that have
        diverged), are no error here: the result says so in ``reason``.

    Raises:
        ValueError: on an option that is not allowed, or that the loss or ``squared`` lacks.

    Example:
        >>> bound_gradient("cross_entropy", batch_size=2, k_z=5.0, classes=10, weight_norm=1.0)
        GradientBound(lipschitz=2.25, squared=5.0625, reason='')
    """
    require_choice("squared", squared, SQUARED)
    if squared == "elementwise" and k_squared is None:
        raise InvalidArgumentError("k_squared must be given for squared='elementwise', got None")
    observed = {"k_z": k_z, "weight_norm": weight_norm, "k_a": k_a, "k_squared": k_squared}
    for name, number in observed.items():
        if number is not None and not isfinite(number):
            return GradientBound(nan, nan, f"{name} is not finite ({number})")
    if k_z == 0:
        return GradientBound(nan, nan, "the last layer's inputs are all zero")
    if loss == "mse" and _slope_vanishes(k_a, target_norm, supremum=supremum):
        return GradientBound(nan, nan, "the bound of the mean squared error vanishes")
    data = lipschitz_constant(
        loss,
        batch_size=batch_size,
        k_z=k_z,
        classes=classes,
        k_a=k_a,
        target_norm=target_norm,
        loss_scale=loss_scale,
        supremum=supremum,
    )
    penalty = (weight_decay + 2.0 * tikhonov) * weight_norm
    square = data**2 + penalty**2
    if squared == "mean":
        square /= entries
    elif k_squared is not None:
        square = (data / k_z) ** 2 * k_squared + 2.0 * data * penalty + penalty**2
    return GradientBound(data + penalty, square)


def _slope_vanishes(k_a: float | None, target_norm: float | None, *, supremum: bool) -> bool:
    """Whether [L] Eq. 9 gives zero: |K_a - ‖y‖|, or their sum for the supremum."""
    output, target = k_a or 0.0, target_norm or 0.0
    return (output + target if supremum else output - target) == 0


def renew(
    rule: LipschitzRule, state: LipschitzState, bound: GradientBound
) -> tuple[LipschitzState, float | None, str]:
    """Take in one epoch's bound; the rate for the next epoch.

    With L and S the bounds on the gradient and its square, t the number of estimates:

    ========  ====================================================  ==========================
    kind      averages                                              rate
    ========  ====================================================  ==========================
    sgd       none                                                  1 / L
    momentum  K1 <- b1 K1 + (1 - b1) L, first K1 = L                gain / K1
    rmsprop   K2 <- b2 K2 + (1 - b2) S, first K2 = (1 - b2) S       gain (sqrt(K2) + eps) / L
    adam      both, divided by 1 - b1^t and 1 - b2^t                (sqrt(K2) + eps) / K1
    ========  ====================================================  ==========================

    Where ``rule.start`` is given, the averages start there and are not corrected; Adam's are not
    either where ``rule.corrected`` is False. Without a start AdaMo
    starts at the first L: from zero, as Algorithm 1 has it, the first rate is 1 / (1 - b1) too
    large for a velocity that fills within an epoch (the papers' "around 32"). RMSprop's starts at
    zero, like the optimizer's own. A constant S makes Adam's rate 1, and RMSprop's tend to 1:
    these rules compare a norm with single entries, see docs/lipschitz.md.

    Returns:
        The new state, the rate, and "". Where the bound is unusable, or the rate would not be
        positive and finite: the state as it was, None, and why.
    """
    if bound.reason:
        return state, None, bound.reason
    new = _average(rule, state, bound)
    try:
        rate = _rate(rule, new, bound)
    except (ZeroDivisionError, OverflowError):
        rate = nan
    if not (isfinite(rate) and rate > 0):
        return state, None, f"the rate would not be positive and finite ({rate:g})"
    return new, rate, ""


def first_rate(rule: LipschitzRule) -> float | None:
    """The papers' rate of the first epoch, where they fix one; None for plain descent.

    AdaMo: x, which is K too ([L] 7.3.1: "sets K to 0.1 and uses this value as the learning rate").
    RMSprop: 1e-3 ([L] section 8). Auto-Adam: (sqrt(K2) + eps) / K1 of the start (section 9).
    In torch's form, so times ``rule.gain``.
    """
    if rule.kind == "momentum":
        return rule.gain * (rule.start or PAPERS_START["momentum"])[0]
    if rule.kind == "rmsprop":
        return rule.gain * _PAPERS_RMSPROP_RATE
    if rule.kind == "adam":
        k1, k2 = rule.start or PAPERS_START["adam"]
        return rule.gain * (sqrt(k2) + rule.eps) / k1
    return None


def _average(rule: LipschitzRule, state: LipschitzState, bound: GradientBound) -> LipschitzState:
    k1, k2 = state.k1, state.k2
    if state.estimates == 0:
        k1 = rule.start[0] if rule.start else k1
        k2 = rule.start[-1] if rule.start else k2
        if rule.kind == "momentum" and not rule.start:
            k1 = bound.lipschitz
    return replace(
        state,
        k1=rule.beta1 * k1 + (1 - rule.beta1) * bound.lipschitz,
        k2=rule.beta2 * k2 + (1 - rule.beta2) * bound.squared,
        estimates=state.estimates + 1,
    )


def _rate(rule: LipschitzRule, state: LipschitzState, bound: GradientBound) -> float:
    if rule.kind == "sgd":
        return rule.gain / bound.lipschitz
    if rule.kind == "momentum":
        return rule.gain / state.k1
    if rule.kind == "rmsprop":
        return rule.gain * (sqrt(state.k2) + rule.eps) / bound.lipschitz
    k1, k2 = state.k1, state.k2
    if rule.corrected and not rule.start:
        k1 /= 1 - rule.beta1**state.estimates
        k2 /= 1 - rule.beta2**state.estimates
    return rule.gain * (sqrt(k2) + rule.eps) / k1
