"""Errors that lrsearch raises on purpose.

LrsearchError
 ├── InvalidArgumentError (also ValueError)   an argument outside what is allowed
 ├── InvalidTypeError     (also TypeError)    an argument of the wrong kind
 ├── MissingDataError     (also FileNotFoundError)   a data file that is nowhere to be found
 ├── MissingPackageError  (also ImportError)  an optional package that is not installed
 └── CheckpointError      (also OSError)      a checkpoint that cannot be written

Every message names the argument, what came, and what to do, in one line.
"""

from __future__ import annotations

from numbers import Integral


class LrsearchError(Exception):
    """Base of every error that lrsearch raises on purpose."""


class InvalidArgumentError(LrsearchError, ValueError):
    """An argument has a value outside what is allowed."""


class InvalidTypeError(LrsearchError, TypeError):
    """An argument has the wrong type."""


class MissingDataError(LrsearchError, FileNotFoundError):
    """A data set is neither in the data folder, nor in the cache, nor reachable at its source."""


class MissingPackageError(LrsearchError, ImportError):
    """An optional package is needed and not installed."""


class CheckpointError(LrsearchError, OSError):
    """A checkpoint cannot be written."""


def require_in_open_unit_interval(name: str, value: float) -> float:
    """Return ``value`` as a float if it lies strictly between 0 and 1.

    Raises:
        InvalidArgumentError: if it does not.
    """
    number = require_number(name, value)
    if not 0.0 < number < 1.0:
        raise InvalidArgumentError(f"{name} must lie strictly between 0 and 1, got {value!r}")
    return number


def require_positive(name: str, value: float) -> float:
    """Return ``value`` as a float if it is positive and finite.

    Raises:
        InvalidArgumentError: if it is not.
    """
    number = require_number(name, value)
    if not 0.0 < number < float("inf"):
        raise InvalidArgumentError(f"{name} must be a positive finite number, got {value!r}")
    return number


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        InvalidArgumentError: if it is not.
    """
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise InvalidArgumentError(f"{name} must be one of {allowed}, got {value!r}")
    return value


def require_whole(name: str, value: int) -> int:
    """Return ``value`` if it is a whole number.

    Raises:
        InvalidTypeError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidTypeError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def require_at_least(name: str, value: float, least: int) -> int:
    """Return ``value`` as an int if it is whole (2.0 counts) and at least ``least``.

    Raises:
        InvalidArgumentError: if it is not.
        InvalidTypeError: if it is not a number.
    """
    number = require_number(name, value)
    if not (number.is_integer() and number >= least):
        raise InvalidArgumentError(
            f"{name} must be a whole number of at least {least}, got {value!r}"
        )
    return int(number)


def require_not_negative(name: str, value: float) -> float:
    """Return ``value`` as a float if it is finite and at least 0.

    Raises:
        InvalidArgumentError: if it is not.
        InvalidTypeError: if it is not a number.
    """
    number = require_number(name, value)
    if not 0.0 <= number < float("inf"):
        raise InvalidArgumentError(f"{name} must be a finite number of at least 0, got {value!r}")
    return number


def require_number(name: str, value: float) -> float:
    """Return ``value`` as a float.

    Raises:
        InvalidTypeError: if it is not a number.
    """
    if isinstance(value, (str, bytes, bool)):
        raise InvalidTypeError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"{name} must be a number, got {value!r}") from error
