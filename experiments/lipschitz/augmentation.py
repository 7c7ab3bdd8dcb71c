"""Random shifts, zooms and rotations of image batches, as Keras' ImageDataGenerator draws them."""

from __future__ import annotations

from dataclasses import dataclass
from math import radians

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Ranges:
    """How far images are moved; the defaults are those of [N] 7.1.

    Attributes:
        shift: up to this share of the image's side, each way, along each axis.
        zoom: both axes are scaled, each by its own factor, from 1 - zoom to 1 + zoom.
        degrees: rotated by up to so much, each way.
        flip: whether half of the images are mirrored, left to right.
    """

    shift: float = 0.1
    zoom: float = 0.1
    degrees: float = 15.0
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Moves:
    """One affine map per image, from the place of an output pixel to that in the input.

    With p = (x, y) from the image's centre: p_in = R(angle) (shift + factor * p_out), Keras' order.

    Attributes:
        shift: pixels along x and y, shape (rows, 2).
        factor: along x and y, shape (rows, 2); above 1 the picture shrinks, below 0 it is mirrored.
        angle: radians, shape (rows,); positive turns the picture counterclockwise on the screen,
            where y points down.
    """

    shift: Tensor
    factor: Tensor
    angle: Tensor

    def __getitem__(self, rows: slice) -> Moves:
        """The moves of some of the images."""
        return Moves(self.shift[rows], self.factor[rows], self.angle[rows])

    def to(self, device: torch.device) -> Moves:
        """The same moves on another device."""
        return Moves(self.shift.to(device), self.factor.to(device), self.angle.to(device))


def draw_moves(rows: int, side: int, ranges: Ranges, generator: torch.Generator) -> Moves:
    """Independent uniform moves, on the CPU so that every device gets the same ones.

    Args:
        rows: images.
        side: pixels of an image's side.
        ranges: how far.
        generator: of the CPU.
    """
    unit = torch.rand(5, rows, generator=generator).mul_(2.0).sub_(1.0)
    factor = 1.0 + unit[2:4].T * ranges.zoom
    if ranges.flip:  # after the move, as Keras: the output's x changes its sign
        factor[:, 0] *= 1.0 - 2.0 * (torch.rand(rows, generator=generator) < 0.5)
    return Moves(
        shift=unit[0:2].T * (ranges.shift * side),
        factor=factor,
        angle=unit[4] * radians(ranges.degrees),
    )


def moved(images: Tensor, moves: Moves) -> Tensor:
    """Each image under its own move: bilinear, the edge's pixels continued (Keras' "nearest").

    Args:
        images: square, floating, shape (rows, channels, side, side).
        moves: one per image, on any device.
    """
    side = images.shape[-1]
    cos, sin = torch.cos(moves.angle), torch.sin(moves.angle)
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    linear = rotation * moves.factor[:, None, :]
    # affine_grid measures from the centre, in half sides.
    offset = rotation @ (moves.shift * (2.0 / side))[:, :, None]
    maps = torch.cat([linear, offset], 2).to(images.device, images.dtype)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
