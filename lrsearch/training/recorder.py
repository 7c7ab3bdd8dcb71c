"""Losses of the present window, kept where they are: nothing waits for the device.

On the CPU a loss is read at once. On an accelerator losses stay there and are copied
to the host in the background, a chunk at a time, so that divergence is seen within two chunks
without a synchronisation; only a window's end reads the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from math import isfinite
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.stats.divergence import EARLY, RUN, START, beyond_noise, explosion_threshold
from lrsearch.stats.series import FloatArray

_LARGEST = float(np.finfo(np.float64).max)
_CHUNK = 16


class LossRecorder(Protocol):
    """Keeps the losses of a window."""

    def append(self, loss: Tensor | float) -> bool:
        """Keep one loss; returns whether the curve is known to have diverged."""

    def values(self) -> FloatArray:
        """All losses since the last ``clear``, shape (steps,). May wait for the device."""

    def clear(self) -> None:
        """Forget the losses: a new window begins."""

    def load(self, losses: Sequence[float]) -> None:
        """Take over the losses of a saved window."""


def make_recorder(loss: Tensor | float) -> LossRecorder:
    """The recorder that suits where ``loss`` lives.

    Raises:
        InvalidTypeError: if it is neither a tensor nor a number.
        InvalidArgumentError: if it is a tensor of more than one element.
    """
    if isinstance(loss, Tensor):
        _require_scalar(loss)
        return HostLosses() if loss.device.type == "cpu" else DeviceLosses()
    if isinstance(loss, bool) or not isinstance(loss, (int, float, np.floating, np.integer)):
        raise InvalidTypeError(f"loss must be a tensor or a number, got {type(loss).__name__}")
    return HostLosses()


class DivergenceWatch:
    """Looks at losses one by one, in the order of the steps (see ``stats.divergence``)."""

    def __init__(self) -> None:
        self._early: list[float] = []
        # Not infinity: an infinite loss must lie above them.
        self._limit = self._beyond = _LARGEST
        self._above = 0

    @classmethod
    def over(cls, losses: Sequence[float]) -> DivergenceWatch:
        """A watch that has seen these losses."""
        watch = cls()
        for loss in losses:
            watch.sees(loss)
        return watch

    def sees(self, loss: float) -> bool:
        """Whether the curve has diverged with this loss."""
        alone = loss > self._beyond
        if len(self._early) < EARLY:
            self._early.append(loss)
            if len(self._early) == START:
                self._beyond = min(beyond_noise(self._early), _LARGEST)
            if len(self._early) == EARLY:
                self._limit = min(explosion_threshold(self._early), _LARGEST)
                before = reversed(self._early[:-1])
                self._above = sum(1 for _ in takewhile(lambda x: x > self._limit, before))
        if not alone and -_LARGEST <= loss <= self._limit:
            self._above = 0
            return False
        self._above += 1
        return alone or not isfinite(loss) or self._above >= RUN


class HostLosses:
    """Losses that are in the host's memory already."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._watch = DivergenceWatch()

    def append(self, loss: Tensor | float) -> bool:
        """Keep one loss; returns whether the curve has diverged with it."""
        value = _read(loss) if isinstance(loss, Tensor) else float(loss)
        self._losses.append(value)
        return self._watch.sees(value)

    def values(self) -> FloatArray:
        """All losses since the last ``clear``, shape (steps,)."""
        return np.asarray(self._losses, dtype=np.float64)

    def clear(self) -> None:
        """Forget the losses: a new window begins."""
        self._losses = []
        self._watch = DivergenceWatch()

    def load(self, losses: Sequence[float]) -> None:
        """Take over the losses of a saved window."""
        self._losses, self._watch = list(losses), DivergenceWatch.over(losses)


class DeviceLosses:
    """Losses that stay on their device until a window ends."""

    def __init__(self) -> None:
        self._host: list[float] = []  # read so far
        self._sent: list[tuple[Tensor, torch.cuda.Event | None]] = []  # copies under way
        self._pending: list[Tensor] = []
        self._watch = DivergenceWatch()

    def append(self, loss: Tensor | float) -> bool:
        """Keep one loss; returns whether the curve is known to have diverged by now."""
        self._pending.append(torch.as_tensor(loss).detach().reshape(()))
        if len(self._pending) < _CHUNK:
            return False
        self._send()
        return self._receive(wait=False)

    def values(self) -> FloatArray:
        """All losses since the last ``clear``, shape (steps,). Waits for the device."""
        if self._pending:
            self._send()
        self._receive(wait=True)
        return np.asarray(self._host, dtype=np.float64)

    def clear(self) -> None:
        """Forget the losses: a new window begins."""
        self._host, self._sent, self._pending = [], [], []
        self._watch = DivergenceWatch()

    def load(self, losses: Sequence[float]) -> None:
        """Take over the losses of a saved window."""
        self.clear()
        self._host, self._watch = list(losses), DivergenceWatch.over(losses)

    def _send(self) -> None:
        """Start copying the pending losses to the host, without waiting."""
        chunk = torch.stack(self._pending)
        if chunk.dtype != torch.float64:
            chunk = chunk.float()
        self._pending = []
        if chunk.device.type != "cuda":
            self._sent.append((chunk.cpu(), None))
            return
        host = torch.empty(chunk.shape, dtype=chunk.dtype, pin_memory=True)
        host.copy_(chunk, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
        event.record(torch.cuda.current_stream(chunk.device))
        self._sent.append((host, event))

    def _receive(self, *, wait: bool) -> bool:
        """Take over the copies that have arrived; returns whether they show divergence."""
        seen = False
        while self._sent:
            host, event = self._sent[0]
            if event is not None and not event.query():  # type: ignore[no-untyped-call]
                if not wait:
                    break
                event.synchronize()
            del self._sent[0]
            for value in host.tolist():
                self._host.append(value)
                seen = self._watch.sees(value) or seen
        return seen


def _read(loss: Tensor) -> float:
    """Value of a scalar in the host's memory, where ``item`` waits for nobody."""
    try:
        return float(loss.item())
    except RuntimeError:
        _require_scalar(loss)
        raise


def _require_scalar(loss: Tensor) -> None:
    if loss.numel() != 1:
        raise InvalidArgumentError(
            f"loss must be a scalar, got a tensor of shape {tuple(loss.shape)}: pass its mean"
        )
