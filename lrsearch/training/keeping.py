"""A training that outlives its process: what is saved, how often, and how it is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from lrsearch.errors import (
    CheckpointError,
    InvalidTypeError,
    require_at_least,
    require_positive,
)
from lrsearch.training.checkpoints import Checkpoint
from lrsearch.training.snapshot import random_state, set_random_state

SECONDS = 30.0

logger = logging.getLogger("lrsearch")


class TrainingLeft(Exception):  # noqa: N818 - nothing is wrong: whoever goes on needs it
    """A training is left here, for whoever goes on with it.

    Attributes:
        keep: whether a checkpoint is saved first.
    """

    def __init__(self, message: str = "", *, keep: bool = True) -> None:
        super().__init__(message)
        self.keep = keep


@runtime_checkable
class Part(Protocol):
    """Something that a checkpoint holds, as torch's optimizers do."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors, plain values, and lists and dictionaries of them."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go on from a ``state_dict``, whose tensors are on the CPU."""


class Keeper:
    """Saves a training now and then, and puts it back where it was.

    Args:
        checkpoint: the file; None to save nothing.
        parts: what is saved beside the model, the optimizer, the controller, the random generators
            and the loop, by name.
        seconds: from one save to the next.
        steps: also save whenever so many gradient steps were taken; None: never for that reason.
        interrupted: called after every gradient step. None means: go on. A ``TrainingLeft`` is
            raised, after a save if it says so; any other exception is raised as it is.
        saved: called when what was saved is safe: after each save, and when a training was put
            back.

    Raises:
        InvalidArgumentError: if ``seconds`` is not positive, or ``steps`` not at least 1.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        parts: Mapping[str, Part] | None = None,
        *,
        seconds: float = SECONDS,
        steps: int | None = None,
        interrupted: Callable[[], BaseException | None] | None = None,
        saved: Callable[[], None] | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._extra = dict(parts or {})
        self._seconds = require_positive("seconds", seconds)
        self._every = None if steps is None else require_at_least("steps", steps, 1)
        self._interrupted = interrupted
        self._saved = saved
        self._parts: dict[str, Part] = {}
        self._state: Mapping[str, Any] | None = None
        self._begun = self._warned = False
        self._due = 0.0
        self.interruption: BaseException | None = None

    def begin(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        controller: object | None = None,
    ) -> bool:
        """Take charge of a training, and put it where its checkpoint is.

        A second call changes nothing: whoever wants to look at the parts before ``train`` does may
        begin before it.

        Returns:
            Whether there was a checkpoint.

        Raises:
            InvalidTypeError: if there is a file for checkpoints and the controller has no state.
        """
        if self._checkpoint is None or self._begun:
            return self._state is not None
        self._begun = True
        if controller is not None and not isinstance(controller, Part):
            raise InvalidTypeError(
                "controller must have state_dict and load_state_dict to be kept, got "
                f"{type(controller).__name__}"
            )
        self._state = self._checkpoint.load()
        self.add("model", ModelState(model))
        self.add("optimizer", optimizer)
        if controller is not None:
            self.add("controller", controller)
        for name, part in self._extra.items():
            self.add(name, part)
        self.add("random", _RandomState())
        if self._state is not None and self._saved is not None:
            self._saved()
        self._due = time.monotonic() + self._seconds
        return self._state is not None

    def add(self, name: str, part: Part) -> None:
        """Save this too from now on; it is put where the checkpoint is."""
        self._parts[name] = part
        if self._state is not None:
            part.load_state_dict(self._state[name])

    def stepped(self, steps: int) -> None:
        """Hear of a gradient step: everything is as it is between two steps.

        Args:
            steps: gradient steps so far.

        Raises:
            BaseException: what ``interrupted`` gave.
        """
        if self._interrupted is not None:
            reason = self._interrupted()
            if reason is not None:
                self._give_way(reason)
        if self._checkpoint is not None and self._is_due(steps):
            self.save()

    def save(self) -> bool:
        """Save now; False without a checkpoint, or where it cannot be written.

        A disk that is full costs the checkpoint, not the training: there is one warning.
        """
        if self._checkpoint is None:
            return False
        self._due = time.monotonic() + self._seconds
        try:
            self._checkpoint.save({name: part.state_dict() for name, part in self._parts.items()})
        except CheckpointError as error:
            if not self._warned:
                self._warned = True
                logger.warning("%s: the training goes on without a new checkpoint", error)
            return False
        if self._saved is not None:
            self._saved()
        return True

    def _give_way(self, reason: BaseException) -> None:
        if isinstance(reason, TrainingLeft) and reason.keep:
            self.save()
        self.interruption = reason
        raise reason

    def _is_due(self, steps: int) -> bool:
        if self._every is not None and steps % self._every == 0:
            return True
        return time.monotonic() >= self._due


class ModelState:
    """All that a model holds: buffers too that are not in its ``state_dict``."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """The tensors themselves, not copies."""
        kept = self._model.state_dict()
        return {"kept": kept, "others": dict(self._others(kept))}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy everything in, wherever the model is."""
        self._model.load_state_dict(state["kept"])
        for name, buffer in self._others(state["kept"]):
            buffer.copy_(state["others"][name])

    def _others(self, kept: Mapping[str, Any]) -> list[tuple[str, torch.Tensor]]:
        return [(name, b) for name, b in self._model.named_buffers() if name not in kept]


class _RandomState:
    """The global generators of Python, numpy and torch."""

    def state_dict(self) -> dict[str, Any]:
        return random_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        set_random_state(state)
