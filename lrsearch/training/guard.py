"""Validation watched over: the best weights are kept, and a rise of the loss is shown, not guessed.

A rate that is too high for noisy labels or few rows fits the training rows all the better: only
other rows tell. Their losses before and after are paired, row by row, so a short look decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from lrsearch.errors import require_in_open_unit_interval
from lrsearch.stats.series import FloatArray

# Of each look. There are some twenty, each pair of them correlated.
LEVEL = 0.01
LOOKS = 2


class ValidationGuard:
    """Keeps the weights of the smallest validation loss, and tells when it has risen since.

    A rise counts where the mean loss of the validation rows has grown, by a paired t-test over the
    rows, while that of training fell: the model has begun to learn its training rows by heart.
    Losses that both go up are the work of noise, or of the rate, which other tests look after.

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
        self._losses: FloatArray = np.empty(0)
        self._train_loss = inf
        self._step = 0
        self._risen = 0

    @property
    def step(self) -> int:
        """Gradient steps after which the kept weights were met; 0 if there are none."""
        return self._step

    def see(self, losses: FloatArray, train_loss: float, step: int) -> bool:
        """Look at the losses of the validation rows; keep the weights if they are the best so far.

        Args:
            losses: shape (rows,), in the same order each time [loss].
            train_loss: mean training loss since the last look [loss].
            step: gradient steps taken.

        Returns:
            Whether a rise since the best look is shown, by this look and the one before: a single
            one may be the noise of a few steps.
        """
        if not np.all(np.isfinite(losses)):
            return False
        if self._weights is None or losses.mean() < self._losses.mean():
            self._losses, self._train_loss, self._step = losses, train_loss, step
            self._weights = {
                name: value.detach().clone() for name, value in self._model.state_dict().items()
            }
            self._risen = 0
            return False
        gaps = losses - self._losses
        risen = False
        if losses.size > 1 and train_loss < self._train_loss and np.any(gaps != gaps[0]):
            test = stats.ttest_1samp(gaps, 0.0, alternative="greater")
            risen = bool(test.pvalue < self._alpha)
        self._risen = self._risen + 1 if risen else 0
        return self._risen >= LOOKS

    def restore(self) -> bool:
        """Put the best weights back; returns whether there were any."""
        self._risen = 0
        if self._weights is None:
            return False
        self._model.load_state_dict(self._weights)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What is kept, for a checkpoint."""
        return {
            "weights": self._weights,
            "losses": torch.from_numpy(self._losses),
            "train_loss": self._train_loss,
            "step": self._step,
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
        self._losses = state["losses"].numpy().copy()
        self._train_loss, self._step = float(state["train_loss"]), int(state["step"])
        self._risen = int(state["risen"])
