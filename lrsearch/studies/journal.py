"""A journal file that workers may share and die over.

Optuna's own file backend asks for two things that a killed worker does not give: that it takes its
lock away (its successors wait 30 s and break it), and that it finishes the line it was writing (the
next line is glued to the torn one, and every reader stops there for good).
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from filelock import FileLock
from optuna.storages.journal import BaseJournalBackend, JournalStorage
from optuna.trial import TrialState

from lrsearch.errors import InvalidArgumentError

_logger = logging.getLogger("lrsearch")

_POLL_SECONDS = 0.005
_TAIL_BYTES = 65536
_HEAD = b'{"op_code":'


class JournalFile(BaseJournalBackend):
    """The operations of a `JournalStorage`, one JSON object a line, in Optuna's own format.

    A line that is torn, because its writer was killed within it, is cut off by the next who
    writes: the operation that it began never happened. Every writer must take the same lock, so
    all workers of a study open its journal with `open_storage`; reading needs no lock, and Optuna's
    own tools can read.

    The file is created once, here. If it is gone later (a network disk that is away), reading and
    writing raise `FileNotFoundError`; no second journal is begun in its place.

    Args:
        path: of the file; its folder exists.

    Raises:
        OSError: if the file cannot be created.
        InvalidArgumentError: if the file is there and no journal.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # Not Optuna's symbolic link: the kernel takes this one back when its holder dies.
        self._lock = FileLock(f"{path}.flock")
        with open(path, "a+b") as file:
            file.seek(0)
            head = file.read(len(_HEAD))
        if not _HEAD.startswith(head):
            raise InvalidArgumentError(f"storage {path!r} is no Optuna journal: name another file")
        # How many operations have been read, and where the next begins.
        self._place = (0, 0)

    def __reduce__(self) -> tuple[type[JournalFile], tuple[str]]:
        return JournalFile, (self._path,)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the operations from the given number on; a line that is not yet whole waits."""
        number, offset = self._place if self._place[0] <= log_number_from else (0, 0)
        lines = iter(self._whole_lines(offset))
        sure = False
        while (line := next(lines, None)) is not None:
            log = _parsed(line)
            if log is None and not sure:
                # Read while another cut a torn line off and wrote on, a line may be made of two.
                # All readers must count alike, so this one reads again while nobody writes.
                with self._lock.acquire(poll_interval=_POLL_SECONDS):
                    lines = iter(self._whole_lines(offset))
                sure = True
                continue
            offset += len(line)
            if log is None:
                _logger.warning("%s: skipped a damaged line before byte %d", self._path, offset)
                continue
            number += 1
            # Noted before the consumer may raise over the operation: it counts as read then, too.
            self._place = (number, offset)
            if number > log_number_from:
                yield log

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Write the operations, all or (of the last) nothing, to the disk."""
        lines = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self._lock.acquire(poll_interval=_POLL_SECONDS):
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0))
            try:
                self._cut_torn_line(file)
                rest = memoryview(lines)
                while rest:
                    rest = rest[os.write(file, rest) :]
                os.fsync(file)
            finally:
                os.close(file)

    def _whole_lines(self, offset: int) -> list[bytes]:
        with open(self._path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < offset:
                raise OSError(
                    errno.ESTALE, f"the journal has shrunk below byte {offset}", self._path
                )
            file.seek(offset)
            *whole, _ = file.read(size - offset).split(b"\n")
        return [line + b"\n" for line in whole]

    def _cut_torn_line(self, file: int) -> None:
        size = os.fstat(file).st_size
        end = size
        while end > 0:
            start = max(0, end - _TAIL_BYTES)
            os.lseek(file, start, os.SEEK_SET)
            found = os.read(file, end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end == size:
            return
        os.ftruncate(file, end)
        _logger.warning(
            "%s: cut off %d bytes that a killed worker left within a line; what it was about to "
            "write never happened",
            self._path,
            size - end,
        )


class SharedJournal(JournalStorage):
    """A `JournalStorage` whose claims are exact for trials that are queued again.

    Optuna takes a claim as won if the trial is the last that this thread ever won. A trial that
    was taken from this thread, queued again and won by another, is: so the memory of it is
    dropped before each claim.
    """

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set the state, as Optuna does; of several who claim a trial, one is told so."""
        if state == TrialState.RUNNING:
            with self._thread_lock:
                replay = self._replay_result
                replay._worker_id_to_owned_trial_id.pop(replay.worker_id, None)
        return super().set_trial_state_values(trial_id, state, values)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        log = json.loads(line)
    except ValueError:
        return None
    return log if isinstance(log, dict) and "op_code" in log else None
