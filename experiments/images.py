"""Sets of images on one device, as bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrsearch.tasks.sources import read_arrays


@dataclass(frozen=True, slots=True)
class Images:
    """Pixels as they come (uint8, shape (rows, channels, side, side)) and labels, on one device."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def read_images(
    dataset: str,
    data_dir: str | None,
    device: torch.device,
    *,
    train: int | None = None,
    test: int | None = None,
) -> Images:
    """The first rows of a set; all of them by default.

    Args:
        dataset: "mnist", "cifar10" or "cifar100".
        data_dir: a folder to look in first.
        device: where the whole set is put.
        train, test: rows.

    Raises:
        MissingDataError: if the set is nowhere to be found.
    """
    arrays = read_arrays(dataset, data_dir)

    def part(name: str, rows: int | None) -> tuple[Tensor, Tensor]:
        pixels = torch.tensor(arrays[f"{name}_images"][:rows])
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(1)
        labels = torch.tensor(arrays[f"{name}_labels"][:rows]).long()
        return pixels.to(device), labels.to(device)

    return Images(*part("train", train), *part("test", test))
