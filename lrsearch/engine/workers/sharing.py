"""Data that is loaded once and read by every worker of a machine: a file, mapped into memory.

The pages of a mapped file are shared by all processes that map it, whoever started them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lrsearch.training.task import Split, TaskData

_SPLITS = ("train", "validation", "test")


def save_data(data: TaskData, path: Path) -> None:
    """Write data for other processes."""
    parts = {
        f"{name}.{kind}": getattr(getattr(data, name), kind).cpu()
        for name in _SPLITS
        for kind in ("inputs", "targets")
    }
    torch.save({**parts, "outputs": data.outputs, "name": data.name}, path)


def load_data(path: Path) -> TaskData:
    """Map data that ``save_data`` wrote; what is written to the tensors stays in this process."""
    kept = torch.load(path, mmap=True, weights_only=True)
    train, validation, test = (
        Split(kept[f"{name}.inputs"], kept[f"{name}.targets"]) for name in _SPLITS
    )
    return TaskData(train, validation, test, outputs=kept["outputs"], name=kept["name"])


def moved(data: TaskData, device: str) -> TaskData:
    """The same data on a device."""
    return replace(
        data,
        train=data.train.to(device),
        validation=data.validation.to(device),
        test=data.test.to(device),
    )
