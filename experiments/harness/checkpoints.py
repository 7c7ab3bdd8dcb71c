"""Checkpoints: where a long cell is, so that a killed run goes on inside it."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch

from lrsearch.errors import InvalidArgumentError

_DIGEST: Final = hashlib.sha256().digest_size


class Checkpoint:
    """The state of one unfinished cell, in a file that is whole or is not taken.

    A save goes to a side file first and leaves the state before it in place: a kill at any moment
    leaves one that can be loaded. A digest in front finds damage; torch does not look for it.

    Args:
        path: of the file; its folder is made by the first save.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._previous = path.with_name(path.name + ".previous")
        self._side = path.with_name(path.name + ".tmp")

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state: tensors, numbers, texts, and lists and dictionaries of them.

        Raises:
            InvalidArgumentError: if the file cannot be written.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._side.open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if self._path.exists():
                self._path.replace(self._previous)
            self._side.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                self._side.unlink()
            raise InvalidArgumentError(
                f"--out: cannot write {str(self._path)!r}: {error.strerror}"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """The last state that is whole, its tensors on the CPU; None if there is none."""
        for path in (self._path, self._previous):
            try:
                content = path.read_bytes()
            except OSError:
                continue
            digest, state = content[:_DIGEST], content[_DIGEST:]
            if hashlib.sha256(state).digest() == digest:
                loaded: dict[str, Any] = torch.load(
                    io.BytesIO(state), map_location="cpu", weights_only=True
                )
                return loaded
            path.unlink(missing_ok=True)  # else it would become the state before the next one
        return None

    def discard(self) -> None:
        """Drop all of it: the cell is finished."""
        for path in (self._path, self._previous, self._side):
            path.unlink(missing_ok=True)
