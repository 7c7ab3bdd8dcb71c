"""Validation watched over: the best weights are kept, and a rise of the loss is shown, not guessed.

A rate that is too high for noisy labels or few rows fits the training rows all the better: only
other rows tell. Their losses before and after are paired, row by row, so a short look decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from torch import nn

from lrsearch.errors import require_in_open_unit_interval
from lrsearch.stats.pairing import FEWEST_PAIRS, paired_test
from lrsearch.stats.series import FloatArray

# Of each look. There are some twenty, each pair of them correlated.
LEVEL = 0.01
LOOKS = 2


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen at a look.

    Attributes:
        losses: shape (rows,), of the validation rows [loss].
        train_loss: mean training loss before it [loss].
        step: gradient steps until there.
    """

    losses: FloatArray
    train_loss: float
    step: int

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": torch.from_numpy(self.losses),
            "train_loss": self.train_loss,
            "step": self.step,
        }


class ValidationGuard:
    """Keeps the weights of the best validation score, and tells when the loss has risen.

    Of looks with one score the last has the weights that are kept, unless its losses are shown to
    be the higher ones: where the rate falls, later weights are the calmer ones, and few rows tell
    few scores apart.

    A rise counts where the mean loss of the validation rows has grown since it was smallest, by a
    paired t-test over the rows, while that of training fell: the model has begun to learn its
    training rows by heart. Losses that both go up are the work of noise, or of the rate, which
    other tests look after.

    Args:
        model: its weights and buffers are kept, on their device.
        alpha: level of each test, in (0, 1).

    Raises:
        ValueError: if alpha is not allowed.
    """

    def __init__(self, model: nn.Module, *, alpha: float = LEVEL) -> None:
        self._model = model
        self._alpha = require_in_open_unit_interval("alpha", alpha)
        self._weights: dict[str, Any] | None = None
        self._score = -inf
        self._kept: _Look | None = None
        self._lowest: _Look | None = None
        self._risen = 0

    @property
    def step(self) -> int:
        """Gradient steps after which the kept weights were met; 0 if there are none."""
        return 0 if self._kept is None else self._kept.step

    @property
    def lowest_step(self) -> int:
        """Gradient steps after which the loss was smallest, from where a rise counts; 0 if none."""
        return 0 if self._lowest is None else self._lowest.step

    def see(self, losses: FloatArray, score: float, train_loss: float, step: int) -> bool:
        """Look at the validation rows; keep the weights if they are the best so far.

        Args:
            losses: shape (rows,), in the same order each time [loss].
            score: of the same rows, the more the better.
            train_loss: mean training loss since the last look [loss].
            step: gradient steps taken.

        Returns:
            Whether a rise since the smallest loss is shown, by this look and the one before: a
            single one may be the noise of a few steps.
        """
        if not np.all(np.isfinite(losses)):
            return False
        look = _Look(losses, train_loss, step)
        equal = self._kept is not None and score == self._score
        if score > self._score or (equal and not self._above(self._kept, look)):
            self._score, self._kept = score, look
            self._weights = {
                name: value.detach().clone() for name, value in self._model.state_dict().items()
            }
        if self._lowest is None or losses.mean() < self._lowest.losses.mean():
            self._lowest = look
            self._risen = 0
            return False
        risen = train_loss < self._lowest.train_loss and self._above(self._lowest, look)
        self._risen = self._risen + 1 if risen else 0
        return self._risen >= LOOKS

    def _above(self, before: _Look | None, now: _Look) -> bool:
        """Whether the losses of the rows are shown to lie above those of another look."""
        if before is None or now.losses.size < FEWEST_PAIRS:
            return False
        return paired_test(before.losses, now.losses).pvalue < self._alpha

    def restore(self) -> bool:
        """Put the best weights back; returns whether there were any."""
        self._risen = 0
        if self._weights is None:
            return False
        self._lowest = self._kept
        self._model.load_state_dict(self._weights)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What is kept, for a checkpoint."""
        return {
            "weights": self._weights,
            "score": self._score,
            "kept": None if self._kept is None else self._kept.state_dict(),
            "lowest": None if self._lowest is None else self._lowest.state_dict(),
            "risen": self._risen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        live = self._model.state_dict()
        kept = state["weights"]
        self._weights = None
        if kept is not None:
            self._weights = {
                name: value.detach().clone().to(live[name].device) for name, value in kept.items()
            }
        self._score = float(state["score"])
        self._kept, self._lowest = _look(state["kept"]), _look(state["lowest"])
        self._risen = int(state["risen"])


def _look(state: Mapping[str, Any] | None) -> _Look | None:
    if state is None:
        return None
    return _Look(state["losses"].numpy().copy(), float(state["train_loss"]), int(state["step"]))
