"""From bytes to what a network is fed, batch by batch, where the bytes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from experiments.lipschitz.augmentation import Moves, Ranges, moved

_CHUNK: Final = 5000  # images at once, for sums
# [L] 7.3 and its scripts: shifts of up to a tenth, with the edge continued, and flips.
SHIFTS_AND_FLIPS: Final = Ranges(shift=0.1, zoom=0.0, degrees=0.0, flip=True)


@dataclass(frozen=True, slots=True)
class Preparation:
    """(pixels / 255 - center) / scale, then moved.

    Attributes:
        center, scale: broadcast to an image's shape (channels, side, side), on the set's device.
        ranges: of the moves in training; None for images as they are.
    """

    center: Tensor
    scale: Tensor
    ranges: Ranges | None = None

    def __call__(self, pixels: Tensor, moves: Moves | None = None) -> Tensor:
        """A batch as the network takes it; nothing here waits for the device.

        Args:
            pixels: uint8, shape (rows, channels, side, side).
            moves: one per image, on the same device; None leaves them where they are.
        """
        inputs = pixels.float().div_(255.0).sub_(self.center).div_(self.scale)
        return inputs if moves is None else moved(inputs, moves)


def standardised(pixels: Tensor) -> Preparation:
    """Each channel to mean 0 and deviation 1 over the training images; no moves ([E])."""
    total, squares = _sums(pixels, (0, 2, 3))
    count = pixels.numel() / pixels.shape[1]
    mean = total / count
    deviation = (squares / count - mean**2).sqrt()
    shape = (-1, 1, 1)
    return Preparation(
        (mean / 255.0).float().reshape(shape), (deviation / 255.0).float().reshape(shape)
    )


def centred(pixels: Tensor) -> Preparation:
    """Less the mean of each pixel and channel, with shifts and flips, as [L]'s scripts.

    The text has the mean of each channel; of the scripts that made the numbers all take this.
    """
    total, _ = _sums(pixels, (0,))
    center = (total / (255.0 * len(pixels))).float()
    return Preparation(center, torch.ones((), device=pixels.device), SHIFTS_AND_FLIPS)


def _sums(pixels: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of values and squares, in whole numbers: the same on every device."""
    parts = torch.split(pixels, _CHUNK)
    total = torch.stack([part.long().sum(axes) for part in parts]).sum(0)
    squares = torch.stack([part.long().square().sum(axes) for part in parts]).sum(0)
    return total.double(), squares.double()
