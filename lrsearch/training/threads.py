"""How many threads a step deserves on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Below this many multiplications a step (forward), threads cost more than they share: on a busy
# machine they wait for each other, and a step of 0.2 ms takes ten.
_WORTH_SHARING = 5_000_000


@contextmanager
def suitable_threads(model: nn.Module, rows: int) -> Iterator[None]:
    """One thread while tiny steps are taken, as many as before for all others.

    Args:
        model: its number of parameters stands for the work per row.
        rows: rows per step.
    """
    before = torch.get_num_threads()
    parameters = sum(p.numel() for p in model.parameters())
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    tiny = on_cpu and parameters * rows < _WORTH_SHARING
    if tiny:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if tiny:
            torch.set_num_threads(before)
