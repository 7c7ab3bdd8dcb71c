"""The losses that bounds and tasks know, by name."""

from __future__ import annotations

from typing import Final

LOSSES: Final = ("cross_entropy", "binary_cross_entropy", "mse")
