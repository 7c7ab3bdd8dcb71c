"""Everything that training changes, kept so that a rung can start over from the same point."""

from __future__ import annotations

import copy
import random
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

# Keys of a parameter group that are rates, torch's own schedulers' included.
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")


class Snapshot:
    """Deep copies of weights, buffers, optimizer, schedulers and random generators.

    Weights, buffers and the optimizer's state wait in a temporary file without a name, which ends
    with this object or its process: they are as large as the model and seldom asked for. Where
    no such file can be written (no room, no folder), they are kept in memory.

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
        self._let_go: Callable[[], object] | None = None
        self._put([t.detach() for t in self._live_tensors()], optimizer.state_dict())
        self._scheduler_states = [copy.deepcopy(s.state_dict()) for s in schedulers]
        self._random_state = random_state()

    def restore(self) -> None:
        """Put everything back, in place."""
        tensors, optimizer_state = self._get()
        with torch.no_grad():
            for live, kept in zip(self._live_tensors(), tensors, strict=True):
                live.copy_(kept)
        self._optimizer.load_state_dict(optimizer_state)
        for scheduler, state in zip(self._schedulers, self._scheduler_states, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        set_random_state(self._random_state)

    def state_dict(self) -> dict[str, Any]:
        """The copies themselves."""
        tensors, optimizer_state = self._get()
        return {
            "tensors": tensors,
            "optimizer": optimizer_state,
            "schedulers": copy.deepcopy(self._scheduler_states),
            "random": dict(self._random_state),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the copies of a ``state_dict``."""
        tensors = [
            kept.detach().to(live.device)
            for kept, live in zip(state["tensors"], self._live_tensors(), strict=True)
        ]
        self._put(tensors, state["optimizer"])
        self._scheduler_states = copy.deepcopy(state["schedulers"])
        self._random_state = dict(state["random"])

    def _put(self, tensors: list[Tensor], optimizer_state: Mapping[str, Any]) -> None:
        """Keep copies: what is large in a file, the optimizer's groups and the like here."""
        large = {"tensors": tensors, "state": optimizer_state["state"]}
        self._groups = {k: copy.deepcopy(v) for k, v in optimizer_state.items() if k != "state"}
        if self._let_go is not None:
            self._let_go()
        self._file: IO[bytes] | None = None
        self._large: dict[str, Any] | None = None
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as it is needed
            self._let_go = weakref.finalize(self, _close, file)
            torch.save(large, file)
            file.flush()
            self._file = file
        except (OSError, RuntimeError):  # torch's writer raises the latter when a disk is full
            self._large = copy.deepcopy(large)

    def _get(self) -> tuple[list[Tensor], dict[str, Any]]:
        """Fresh copies of the tensors and of the optimizer's state."""
        if self._file is None:
            large = copy.deepcopy(self._large)
        else:
            self._file.seek(0)
            # Nobody else can write to this file: it has no name.
            large = torch.load(self._file, weights_only=False)
        assert large is not None
        return large["tensors"], copy.deepcopy(self._groups) | {"state": large["state"]}

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


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # a full disk has no room for what closing writes
        file.close()


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
