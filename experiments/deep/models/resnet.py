"""Residual networks for CIFAR: v1 with plain blocks, v2 with bottlenecks.

Sources: v1, He et al. 2016a (arXiv 1512.03385), 4.2; v2, He et al. 2016b (arXiv 1603.05027). [L]
took both from the examples of the Keras documentation, which give every convolution a bias, use
1 x 1 projections without batch normalisation where the shape changes, and have wider inner layers
in v2; so do these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn
from torch.nn import functional

from experiments.deep.models.network import Network, SpatialMean, conv, norm
from experiments.keras import he_normal

# Channels (inner, outer) of the three stages of v2.
KERAS_V2: Final = ((16, 64), (64, 128), (128, 256))
HE_V2: Final = ((16, 64), (32, 128), (64, 256))


class PlainBlock(nn.Module):
    """Two 3 x 3 convolutions; the shortcut is added before the last ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv(inputs, outputs, 3, stride, bias=True),
            norm(outputs),
            nn.ReLU(inplace=True),
            conv(outputs, outputs, 3, bias=True),
            norm(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = conv(inputs, outputs, 1, stride, bias=True)

    def forward(self, maps: Tensor) -> Tensor:
        """(rows, inputs, side, side) -> (rows, outputs, side / stride, side / stride)."""
        return functional.relu(self.residual(maps) + self.shortcut(maps))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1, each after batch normalisation and ReLU; the sum stays as it is.

    Args:
        inputs, inner, outputs: channels.
        stride: of the first convolution.
        first: the network's first block: what comes is normalised already.
        project: whether the shortcut is a 1 x 1 convolution.
    """

    def __init__(
        self, inputs: int, inner: int, outputs: int, stride: int, *, first: bool, project: bool
    ) -> None:
        super().__init__()
        before: list[nn.Module] = [] if first else [norm(inputs), nn.ReLU(inplace=True)]
        self.residual = nn.Sequential(
            *before,
            conv(inputs, inner, 1, stride, bias=True),
            norm(inner),
            nn.ReLU(inplace=True),
            conv(inner, inner, 3, bias=True),
            norm(inner),
            nn.ReLU(inplace=True),
            conv(inner, outputs, 1, bias=True),
        )
        self.shortcut: nn.Module = nn.Identity()
        if project:
            self.shortcut = conv(inputs, outputs, 1, stride, bias=True)

    def forward(self, maps: Tensor) -> Tensor:
        """(rows, inputs, side, side) -> (rows, outputs, side / stride, side / stride)."""
        total: Tensor = self.residual(maps) + self.shortcut(maps)
        return total


def resnet_v1(depth: int = 20, classes: int = 10) -> Network:
    """Depth 6 n + 2; ResNet-20 has 273 066 parameters.

    Args:
        depth: convolutions on the straight way, and the linear layer.
        classes: logits.
    """
    blocks = (depth - 2) // 6
    layers: list[nn.Module] = [conv(3, 16, 3, bias=True), norm(16), nn.ReLU(inplace=True)]
    channels = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(PlainBlock(channels, width, stride))
            channels = width
    return Network(nn.Sequential(*layers, SpatialMean()), _head(channels, classes))


def resnet_v2(
    depth: int, classes: int = 10, *, stages: Sequence[tuple[int, int]] = KERAS_V2
) -> Network:
    """Depth 9 n + 2 with bottlenecks: 56 has n = 6, 164 has n = 18.

    Args:
        depth: convolutions on the straight way, and the linear layer.
        classes: logits.
        stages: channels of each: ``KERAS_V2``, which [L] used, or ``HE_V2``.
    """
    blocks = (depth - 2) // 9
    layers: list[nn.Module] = [conv(3, 16, 3, bias=True), norm(16), nn.ReLU(inplace=True)]
    channels = 16
    for stage, (inner, outer) in enumerate(stages):
        for block in range(blocks):
            first = block == 0
            layers.append(
                Bottleneck(
                    channels,
                    inner,
                    outer,
                    2 if stage > 0 and first else 1,
                    first=stage == 0 and first,
                    project=first,
                )
            )
            channels = outer
    layers += [norm(channels), nn.ReLU(inplace=True), SpatialMean()]
    return Network(nn.Sequential(*layers), _head(channels, classes))


def _head(features: int, classes: int) -> nn.Linear:
    layer = nn.Linear(features, classes)
    he_normal(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
