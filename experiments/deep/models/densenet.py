"""DenseNet without bottlenecks or compression: L = 40, k = 12.

Source: Huang et al. 2017 (arXiv 1608.06993), 3 and 4.1. [L] took github.com/titu1994/DenseNet,
whose first convolution has 2 k channels where the paper's has 16.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.deep.models.network import Network, SpatialMean, conv, norm

GROWTH: Final = 12
BLOCKS: Final = 3


class DenseLayer(nn.Module):
    """Batch normalisation, ReLU and a 3 x 3 convolution, whose maps are put beside what came."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = norm(inputs)
        self.conv = conv(inputs, growth, 3, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(rows, inputs, side, side) -> (rows, inputs + growth, side, side)."""
        fresh = self.conv(functional.relu(self.norm(maps)))
        return torch.cat([maps, fresh], dim=1)


def densenet(depth: int = 40, classes: int = 10, *, first: int = 2 * GROWTH) -> Network:
    """Depth 3 n + 4: three blocks of n layers that grow by k = 12 channels each.

    Args:
        depth: convolutions, transitions' included, and the linear layer.
        classes: logits.
        first: channels of the first convolution: 2 k as [L], or the paper's 16.
    """
    layers: list[nn.Module] = [conv(3, first, 3, bias=False)]
    channels = first
    for block in range(BLOCKS):
        for _ in range((depth - 4) // BLOCKS):
            layers.append(DenseLayer(channels, GROWTH))
            channels += GROWTH
        layers += [norm(channels), nn.ReLU(inplace=True)]
        if block < BLOCKS - 1:
            layers += [conv(channels, channels, 1, bias=False), nn.AvgPool2d(2)]
    head = nn.Linear(channels, classes)
    nn.init.xavier_uniform_(head.weight)  # Keras' default
    nn.init.zeros_(head.bias)
    return Network(nn.Sequential(*layers, SpatialMean()), head)
