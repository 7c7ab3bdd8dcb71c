"""Everything that training changes, kept so that a rung can start over from the same point."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Keys of a parameter group that are rates, torch's own schedulers' included.
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")


class Snapshot:
    """Deep copies of weights, buffers, optimizer, schedulers and random generators.

    Args:
        optimizer: its state and groups are kept, and the parameters that it holds.
        model: its buffers (batch-norm statistics) and other parameters are kept too.
        schedulers: learning-rate schedulers to wind back with the rest.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module | None = None,
        schedulers: Sequence[Any] = (),
    ) -> None:
        self._optimizer, self._model, self._schedulers = optimizer, model, schedulers
        self._tensors = [t.detach().clone() for t in self._live_tensors()]
        self._optimizer_state = copy.deepcopy(optimizer.state_dict())
        self._scheduler_states = [copy.deepcopy(s.state_dict()) for s in schedulers]
        self._random_state = random_state()

    def restore(self) -> None:
        """Put everything back, in place."""
        with torch.no_grad():
            for live, kept in zip(self._live_tensors(), self._tensors, strict=True):
                live.copy_(kept)
        self._optimizer.load_state_dict(copy.deepcopy(self._optimizer_state))
        for scheduler, state in zip(self._schedulers, self._scheduler_states, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        set_random_state(self._random_state)

    def state_dict(self) -> dict[str, Any]:
        """The copies themselves."""
        return {
            "tensors": list(self._tensors),
            "optimizer": copy.deepcopy(self._optimizer_state),
            "schedulers": copy.deepcopy(self._scheduler_states),
            "random": dict(self._random_state),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the copies of a ``state_dict``."""
        live = list(self._live_tensors())
        self._tensors = [
            kept.detach().clone().to(tensor.device)
            for kept, tensor in zip(state["tensors"], live, strict=True)
        ]
        self._optimizer_state = copy.deepcopy(state["optimizer"])
        self._scheduler_states = copy.deepcopy(state["schedulers"])
        self._random_state = dict(state["random"])

    def _live_tensors(self) -> Iterator[Tensor]:
        """Parameters and buffers of the model, then parameters that only the optimizer holds."""
        seen: set[int] = set()
        for tensor in self._all_tensors():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

    def _all_tensors(self) -> Iterable[Tensor]:
        if self._model is not None:
            yield from self._model.parameters()
            yield from self._model.buffers()  # those that are not in state_dict() too
        for group in self._optimizer.param_groups:
            yield from group["params"]


def scale_rates(
    optimizer: torch.optim.Optimizer, factor: float, schedulers: Sequence[Any] = ()
) -> None:
    """Multiply the rate of every parameter group, and what schedulers derive rates from."""
    scaled: set[int] = set()  # torch lets groups share one tensor as their rate
    for group in optimizer.param_groups:
        for key in _RATES:
            rate = group.get(key)
            if isinstance(rate, Tensor):
                if id(rate) not in scaled:
                    scaled.add(id(rate))
                    rate.mul_(factor)
            elif rate is not None:
                group[key] = rate * factor
    for scheduler in schedulers:
        _scale_scheduler(scheduler, factor)


def _scale_scheduler(scheduler: Any, factor: float) -> None:
    """Scale the rates of a scheduler and of those nested in it (SequentialLR and the like)."""
    for name in ("base_lrs", "max_lrs", "_last_lr"):
        rates = getattr(scheduler, name, None)
        if isinstance(rates, list):
            setattr(scheduler, name, [rate * factor for rate in rates])
    for nested in getattr(scheduler, "_schedulers", ()):
        _scale_scheduler(nested, factor)


def random_state() -> dict[str, Any]:
    """State of Python's, numpy's and torch's global generators, in types that torch.save trusts."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is kept
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if _cuda_in_use() else [],
    }


def _cuda_in_use() -> bool:
    """Whether this process has touched a CUDA device: asking for more would start one."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # torch's


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators back."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    words32 = keys.numpy().astype(np.uint32)
    np.random.set_state((kind, words32, position, has_gauss, cached))  # noqa: NPY002 - as above
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(list(state["cuda"]))
