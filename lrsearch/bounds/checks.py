"""Checks that the bounds share."""

from __future__ import annotations

from typing import Final

from lrsearch.errors import InvalidArgumentError, require_number

LOSSES: Final = ("cross_entropy", "binary_cross_entropy", "mse")


def require_not_negative(name: str, value: float) -> float:
    """Return ``value`` as a float if it is finite and at least 0.

    Raises:
        ValueError: if it is not.
        TypeError: if it is no number.
    """
    number = require_number(name, value)
    if not 0.0 <= number < float("inf"):
        raise InvalidArgumentError(f"{name} must be a finite number of at least 0, got {value!r}")
    return number


def require_whole(name: str, value: float, least: int) -> int:
    """Return ``value`` as an int if it is whole and at least ``least``.

    Raises:
        ValueError: if it is not.
        TypeError: if it is no number.
    """
    number = require_number(name, value)
    if not (number.is_integer() and number >= least):
        raise InvalidArgumentError(
            f"{name} must be a whole number of at least {least}, got {value!r}"
        )
    return int(number)
