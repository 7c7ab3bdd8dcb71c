"""What moves the weights of a deep network, and where its rate comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from experiments.deep.models.network import Network, kernels
from experiments.harness.cells import Row
from lrsearch import ExpTest, LipschitzLR
from lrsearch.stats.convergence import Mode


class Driver(Protocol):
    """An optimizer, and a rule of its rate.

    Attributes:
        optimizer: what is zeroed before, and stepped by ``step``.
        stopped: whether the rule wants no more steps.
        restarts: whether the rule begins anew where training diverges.
    """

    optimizer: torch.optim.Optimizer
    stopped: bool
    restarts: bool

    def step(self, loss: Tensor) -> None:
        """Move the weights; ``loss`` is the step's. Nothing waits for the device between looks."""

    def close_epoch(self) -> Row:
        """Set the rate of the next epoch; what the rate of the one that ended rested on."""

    def state_dict(self) -> dict[str, Any]:
        """All of it, the optimizer's state included."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``; the network's is loaded beside it."""


# (network, rows a step, steps of the whole run) -> driver.
Method: TypeAlias = Callable[[Network, int, int], Driver]
MakeOptimizer: TypeAlias = Callable[[Any], torch.optim.Optimizer]


class RateDecay:
    """Keras' ``decay``: the rate of step t is base / (1 + decay t); [L] calls it weight decay.

    Args:
        optimizer: whose rates are set before each step but the first, whose rate a hook may set.
        decay: 0 leaves them alone.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self._optimizer, self._decay = optimizer, decay
        self.base = float(optimizer.param_groups[0]["lr"])
        self.steps = 0

    def before(self) -> None:
        """Set the rate of the coming step."""
        if self._decay and self.steps:
            self._set(self.base / (1.0 + self._decay * self.steps))

    def after(self) -> None:
        """Count the step."""
        if self.steps == 0:
            self.base = float(self._optimizer.param_groups[0]["lr"])
        self.steps += 1

    def rebase(self, base: float) -> None:
        """Another rate, to be divided by as much as the old one was."""
        self.base = base
        self._set(base)

    def state_dict(self) -> dict[str, Any]:
        """Base and steps."""
        return {"base": self.base, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self.base, self.steps = float(state["base"]), int(state["steps"])

    def _set(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate


class Fixed:
    """The optimizer's own rate, decayed or not."""

    stopped = restarts = False

    def __init__(self, optimizer: torch.optim.Optimizer, *, decay: float = 0.0) -> None:
        self.optimizer, self._rate = optimizer, RateDecay(optimizer, decay)

    def step(self, loss: Tensor) -> None:
        """Move the weights."""
        self._rate.before()
        self.optimizer.step()
        self._rate.after()

    def close_epoch(self) -> Row:
        """Rate of the last step, and what it was before Keras' decay."""
        return {
            "lr": self._rate.base,
            "lr_decayed": float(self.optimizer.param_groups[0]["lr"]),
        }

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and decay."""
        return {"optimizer": self.optimizer.state_dict(), "rate": self._rate.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._rate.load_state_dict(state["rate"])


class Lipschitz(Fixed):
    """1 / L, renewed at each epoch's end.

    Args:
        optimizer: whose rate it is.
        network: whose last layer's inputs give K_z.
        decay: Keras'.
        divide_by_k_z: the rate is (sqrt(K) + eps) / K_z, as [L]'s RMSprop scripts have it in place
            of the text's division by L.
        options: of ``LipschitzLR``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        network: Network,
        *,
        decay: float = 0.0,
        divide_by_k_z: bool = False,
        **options: Any,
    ) -> None:
        self._controller = LipschitzLR(optimizer, network, layer=network.head, **options)
        self._divide_by_k_z = divide_by_k_z
        super().__init__(optimizer, decay=decay)

    def close_epoch(self) -> Row:
        """Renew the rate."""
        row = super().close_epoch()
        before = self._controller.last
        row["k_z"] = None if before is None else before.k_z
        row["lipschitz"] = None if before is None else before.lipschitz
        self._rate.rebase(self._rate.base)
        after = self._controller.step()
        row["note"] = after.reason
        rate = after.lr
        if self._divide_by_k_z and not after.reason:
            rate *= after.lipschitz / after.k_z
        self._rate.rebase(rate)
        return row

    def state_dict(self) -> dict[str, Any]:
        """With the controller's."""
        return {**super().state_dict(), "controller": self._controller.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        super().load_state_dict(state)
        self._controller.load_state_dict(state["controller"])


class UnderExpTest:
    """ExpTest finds the rate and tunes it, restarts included."""

    restarts = True

    def __init__(
        self, optimizer: torch.optim.Optimizer, network: nn.Module, *, mode: Mode, steps: int
    ) -> None:
        self.optimizer, self.stopped = optimizer, False
        self._exptest = ExpTest(optimizer, model=network, mode=mode, total_steps=steps)

    def step(self, loss: Tensor) -> None:
        """Move the weights, and tell the controller."""
        self.optimizer.step()
        self.stopped = self._exptest.step(loss).kind == "stop"

    def close_epoch(self) -> Row:
        """What it did so far."""
        decisions = [window.decision for window in self._exptest.windows]
        accepted = [w.last_step for w in self._exptest.windows if w.decision == "accept"]
        return {
            "lr": self._exptest.lr,
            "phase": self._exptest.phase,
            "restarts": decisions.count("restart"),
            "decays": decisions.count("decay"),
            "accepted_step": accepted[0] if accepted else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and controller, the weights of its restarts included."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "controller": self._exptest.state_dict(),
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._exptest.load_state_dict(state["controller"])
        self.stopped = bool(state["stopped"])


def penalised(network: Network, penalty: float) -> list[dict[str, Any]]:
    """Parameter groups: convolutions' kernels with an L2 penalty, all else without.

    Args:
        network: whose parameters.
        penalty: what is multiplied with the weights and added to their gradient.
    """
    chosen = kernels(network)
    known = {id(weight) for weight in chosen}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in known]
    return [
        {"params": chosen, "weight_decay": penalty},
        {"params": rest, "weight_decay": 0.0},
    ]
