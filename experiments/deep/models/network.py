"""What the deep networks share: a body, a last layer, and how Keras' layers differ from torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from experiments.keras import NORM_EPS, NORM_MOMENTUM, he_normal


class Network(nn.Module):
    """An image classifier: (rows, 3, 32, 32) -> logits (rows, classes).

    The two parts are apart because K_z is the norm of what the last layer takes, and because a
    body without hooks can be compiled as a whole.

    Args:
        body: images -> features, shape (rows, features).
        head: features -> logits.
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        features = self.features if self._compiled is None else self._compiled
        logits: Tensor = self.head(features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """What the last layer takes, shape (rows, features)."""
        found: Tensor = self.body(images)
        return found

    def compile_body(self, **options: Any) -> None:
        """Let ``torch.compile`` have the body as a whole; weights keep their names.

        ``nn.Module.compile`` would take a Sequential's blocks one by one, which ends at torch's
        limit of recompilations.
        """
        self._compiled = torch.compile(self.features, **options)


class SpatialMean(nn.Module):
    """Mean over rows and columns: torch's adaptive pooling has no deterministic gradient."""

    def forward(self, maps: Tensor) -> Tensor:
        """(rows, channels, height, width) -> (rows, channels)."""
        return maps.mean((2, 3))


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with Keras' settings."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


def conv(inputs: int, outputs: int, size: int, stride: int = 1, *, bias: bool) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1, from Keras' he_normal; biases at zero.

    At stride 2 Keras pads below and to the right alone, where torch pads on all sides: the
    same windows, one pixel further.
    """
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=bias)
    he_normal(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def kernels(network: nn.Module) -> list[Tensor]:
    """The convolutions' weights, which Keras' examples give an L2 penalty; biases have none."""
    return [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d)]
