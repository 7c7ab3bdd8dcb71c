"""Mini-batches in an order that the seed alone decides, from any point of an epoch on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lrsearch.training.task import Split


class Batches:
    """Mini-batches of a split, reshuffled at each pass.

    Args:
        split: the rows.
        batch_size: rows of a batch, the last of a pass may have fewer; None: all rows at once.
        seed: of the order.
    """

    def __init__(self, split: Split, batch_size: int | None, seed: int) -> None:
        self._split = split
        self._rows = len(split)
        self._size = min(batch_size or self._rows, self._rows)
        self._order = torch.Generator().manual_seed(seed)
        self._before_pass = self._order.get_state()
        self._taken = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass: inputs and targets; after a ``load_state_dict`` what is left of that pass."""
        inputs, targets = self._split.inputs, self._split.targets
        self._before_pass = self._order.get_state()
        if self._size == self._rows:
            if self._taken == 0:
                self._taken = 1
                yield inputs, targets
        else:
            permutation = torch.randperm(self._rows, generator=self._order).to(inputs.device)
            for start in range(self._taken * self._size, self._rows, self._size):
                self._taken += 1
                chosen = permutation[start : start + self._size]
                yield inputs[chosen], targets[chosen]
        self._taken = 0

    def state_dict(self) -> dict[str, Any]:
        """Where a pass is: the generator before it, and the batches that were taken from it."""
        return {"order": self._before_pass, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on within that pass."""
        self._order.set_state(state["order"])
        self._before_pass, self._taken = state["order"], int(state["taken"])
