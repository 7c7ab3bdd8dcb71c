"""Checkpoints: where a training is, in a file that outlives its process."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch

from lrsearch.errors import CheckpointError

_DIGEST: Final = hashlib.sha256().digest_size

logger = logging.getLogger("lrsearch")


class Checkpoint:
    """The state of something unfinished, in a file that is whole or is not taken.

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
            CheckpointError: if the file cannot be written; the state before it is still there.
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
            raise CheckpointError(f"cannot write {str(self._path)!r}: {error.strerror}") from error
        _sync_folder(self._path.parent)

    def load(self) -> dict[str, Any] | None:
        """The last state that is whole, its tensors on the CPU; None if there is none.

        A file that is damaged, or cannot be read, is passed over with a warning.
        """
        troubles = []
        for path in (self._path, self._previous):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                troubles.append(f"{str(path)!r} cannot be read ({error.strerror})")
                continue
            digest, state = content[:_DIGEST], content[_DIGEST:]
            if hashlib.sha256(state).digest() == digest:
                if troubles:
                    logger.warning("checkpoint %s: took the one before it", troubles[0])
                loaded: dict[str, Any] = torch.load(
                    io.BytesIO(state), map_location="cpu", weights_only=True
                )
                return loaded
            troubles.append(f"{str(path)!r} is damaged")
            path.unlink(missing_ok=True)  # else it would become the state before the next one
        if troubles:
            logger.warning("checkpoint %s: starting over", ", and ".join(troubles))
        return None

    def discard(self) -> None:
        """Drop all of it: what it was for is finished."""
        for path in (self._path, self._previous, self._side):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have the new names on disk too, where folders can be synced (not on Windows)."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
