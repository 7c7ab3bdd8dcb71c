"""Where Keras' layers differ from torch's: what the authors of [L] and [N] trained with."""

from __future__ import annotations

from math import sqrt
from typing import Final

from torch import Tensor, nn

# Keras' defaults: moving averages keep 0.99, which torch calls a momentum of 0.01.
NORM_MOMENTUM: Final = 0.01
NORM_EPS: Final = 1e-3
EPSILON: Final = 1e-7  # of optimizers
# Standard deviation of a standard normal cut at two: Keras divides by it.
_CUT_NORMAL: Final = 0.87962566103423978


def he_normal(weight: Tensor) -> None:
    """Normal with variance 2 / fan-in, cut at two deviations, as Keras draws it."""
    deviation = sqrt(2.0 / weight[0].numel()) / _CUT_NORMAL
    nn.init.trunc_normal_(weight, std=deviation, a=-2.0 * deviation, b=2.0 * deviation)
