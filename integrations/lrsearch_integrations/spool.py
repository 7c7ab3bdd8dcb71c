"""What a run has to tell, on disk before anybody is told: nothing is lost with a server.

Each run has a folder of its own::

    run.json       who the run is; written once
    records.jsonl  what it logs, a line per call, appended
    files/         contents of its artifacts
    sent.json      how far the store has it: the high-water mark
    lock           held by the process that writes; free again when that process dies

The folder is the source of truth. It goes when the store has everything and the run is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lrsearch.errors import LrsearchError

_HEADER, _RECORDS, _SENT, _LOCK, _FILES = (
    "run.json",
    "records.jsonl",
    "sent.json",
    "lock",
    "files",
)
_VERSION = 1
_TRIES = 100
# Kind of the record by which whoever goes on with a run begins.
REOPENED = "o"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class SpoolError(LrsearchError, OSError):
    """The spool cannot be written."""


class RunTakenError(SpoolError):
    """A living process writes this run."""


@dataclass(frozen=True, slots=True)
class Header:
    """Who a run is.

    Attributes:
        uid: unique name, the same for whoever goes on with the run.
        tracking_uri: the store it is meant for.
        experiment: name of the experiment.
        name: how the run is shown.
        tags: texts that it is created with.
        start_time: in milliseconds since 1970.
        parent: uid of the run that it is nested in; "" for none.
        parent_run_id: the store's id of that run, where it is known.
        run_id: the store's id of this run, where it existed before; "" if it is to be created.
        owned: whether whoever writes also closes it.
        key: name of a run that several processes write, each in a spooled run of its own; the store
            is searched for it before it is created. "" where ``uid`` is all there is.
        named: whether the uid is the caller's own, so that the store may have the run already.
    """

    uid: str
    tracking_uri: str
    experiment: str
    name: str
    tags: Mapping[str, str]
    start_time: int
    parent: str = ""
    parent_run_id: str = ""
    run_id: str = ""
    owned: bool = True
    key: str = ""
    named: bool = False
    version: int = _VERSION


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the store has a run.

    Attributes:
        run_id: the store's id of the run; "" before it is created.
        experiment_id: the store's id of its experiment.
        offset: bytes of the records that the store has.
        creating: whether somebody has asked the store to create the run: it may exist.
        doubtful: whether that was asked more than once, or slow to be answered: it may exist twice.
        closed: whether the store has its end.
    """

    run_id: str = ""
    experiment_id: str = ""
    offset: int = 0
    creating: bool = False
    doubtful: bool = False
    closed: bool = False


@dataclass(slots=True)
class Chunk:
    """Some records, in the order in which they were written.

    Attributes:
        records: each a list whose first entry is its kind.
        end: offset behind the last of them.
        damaged: lines that were no records (a process was killed while it wrote).
    """

    records: list[list[Any]] = field(default_factory=list)
    end: int = 0
    damaged: int = 0


class SpooledRun:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Taken in one thread, given back in another.
        self._lock = FileLock(folder / _LOCK, thread_local=False)
        self._out: int | None = None
        self._written = 0

    @property
    def header(self) -> Header:
        """Who the run is.

        Raises:
            SpoolError: if the folder holds no readable header.
        """
        try:
            kept = json.loads((self.folder / _HEADER).read_text(encoding="utf-8"))
            return Header(**kept)
        except (OSError, ValueError, TypeError) as error:
            raise SpoolError(f"no run is spooled in {self.folder}: {error}") from error

    @property
    def exists(self) -> bool:
        """Whether there is such a run: it may have been put away."""
        return (self.folder / _HEADER).exists()

    @property
    def mark(self) -> Mark:
        """How far the store has it; from the start where that is not known."""
        try:
            return Mark(**json.loads((self.folder / _SENT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Mark(run_id=self.header.run_id)

    @property
    def size(self) -> int:
        """Bytes of records so far."""
        try:
            return (self.folder / _RECORDS).stat().st_size
        except OSError:
            return 0

    def set_mark(self, mark: Mark) -> None:
        """Note how far the store has it; a kill leaves the old mark or the new one."""
        _write_whole(self.folder / _SENT, json.dumps(asdict(mark)))

    def acquire(self) -> bool:
        """Become the one who writes; False if a living process is."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def open(self) -> None:
        """Open the records for writing, behind what is there.

        Raises:
            SpoolError: if that is not possible.
        """
        path = self.folder / _RECORDS
        try:
            self._out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._written = self.size
            if self._written and _last_byte(path) != b"\n":
                self._append(b"\n")  # a line that a kill has torn stays alone
        except OSError as error:
            raise SpoolError(f"cannot write {path}: {error.strerror}") from error

    def write(self, *record: Any) -> int:
        """Append a record; returns the offset behind it.

        In the hands of the operating system when this returns: the process may be killed.

        Raises:
            SpoolError: if it cannot be written.
        """
        if self._out is None:
            raise SpoolError(f"the records in {self.folder} are not open")
        line = _encode(record) + "\n"
        try:
            return self._append(line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise SpoolError(f"cannot write in {self.folder}: {error.strerror}") from error

    def add_file(self, content: bytes) -> str:
        """Keep the content of an artifact; returns the name that a record can give."""
        folder = self.folder / _FILES
        name = uuid.uuid4().hex
        try:
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        except OSError as error:
            raise SpoolError(f"cannot write in {folder}: {error.strerror}") from error
        return name

    def file(self, name: str) -> Path:
        """Where the content of an artifact lies."""
        return self.folder / _FILES / name

    def read(self, offset: int, *, most: int) -> Chunk:
        """Records behind an offset.

        Args:
            offset: where to begin.
            most: no further record is taken once so many values of metrics are there.
        """
        chunk, values = Chunk(end=offset), 0
        with (self.folder / _RECORDS).open("rb") as source:
            source.seek(offset)
            for line in source:
                if not line.endswith(b"\n"):
                    break  # being written, or torn
                try:
                    record = json.loads(line)
                    if not isinstance(record, list) or not record:
                        raise ValueError
                    chunk.records.append(record)
                    values += len(record[3]) if record[0] == "m" else 0
                except ValueError:
                    chunk.damaged += bool(line.strip())
                chunk.end += len(line)
                if values >= most:
                    break
        return chunk

    def records(self) -> Iterator[list[Any]]:
        """All records, from the first on."""
        offset = 0
        while (chunk := self.read(offset, most=10_000)).end > offset:
            yield from chunk.records
            offset = chunk.end

    def release(self) -> None:
        """Let another process have it."""
        if self._out is not None:
            os.close(self._out)
            self._out = None
        self._lock.release(force=True)

    def clear(self) -> None:
        """Delete what is in the folder but the lock, which is held: the header first.

        Without its header it is no run: a kill leaves nothing that would be taken for one whose end
        is missing.
        """
        (self.folder / _HEADER).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _LOCK:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder: the store has everything.

        Under the lock up to the last file: who waits for it begins in a folder of its own.
        """
        lock, unlocked = self.folder / _LOCK, False
        with contextlib.suppress(OSError):
            if self._out is not None:
                os.close(self._out)
                self._out = None
            self.clear()
            lock.unlink()
            unlocked = True  # a lock that is there from now on is another's
        if not unlocked:  # Windows deletes no open file, and none that another has opened
            self.release()
            with contextlib.suppress(OSError):
                lock.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        self.release()

    def _append(self, content: bytes) -> int:
        assert self._out is not None
        view = memoryview(content)
        while view:
            view = view[os.write(self._out, view) :]
        self._written += len(content)
        return self._written


class Spool:
    """The runs that a folder keeps.

    Args:
        folder: made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, header: Header, ready: Callable[[], None] | None = None) -> SpooledRun:
        """Open a run for writing; one that is there already goes on where it stopped.

        Args:
            header: who the run is.
            ready: is called before anything is written, by which time nobody else does. What it
                raises is passed on, and the run stays as it was.

        Raises:
            SpoolError: if the folder cannot be written, or another process writes this run.
        """
        run = SpooledRun(self.folder / _folder_name(header.uid))
        with self._explained():
            taken = not _acquired(run)
        if taken:
            raise RunTakenError(f"the run {header.uid!r} is written by another process")
        known = run.exists
        if ready is not None:
            try:
                ready()
            except BaseException:
                if known:
                    run.release()
                else:
                    run.remove()
                raise
        with self._explained():
            if not known:
                run.clear()  # of what a kill has left of one that was being deleted
                _write_whole(run.folder / _HEADER, json.dumps(asdict(header)))
            elif run.mark.closed:
                run.set_mark(replace(run.mark, closed=False))
        run.open()
        if known:
            run.write(REOPENED)  # an end that stands before this is none
        return run

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SpoolError:
            raise
        except OSError as error:
            raise SpoolError(
                f"cannot write the spool {self.folder}: {error.strerror}; "
                "choose another folder by LRSEARCH_SPOOL"
            ) from error

    def runs(self) -> Iterator[SpooledRun]:
        """All runs in it, parents before their children."""
        yield from (run for _, run in self.entries())

    def entries(self) -> list[tuple[Header, SpooledRun]]:
        """All runs in it with their headers, parents before their children.

        A run that nobody holds may be gone, or another's, by the time it is looked at.
        """
        found: list[tuple[Header, SpooledRun]] = []
        with contextlib.suppress(OSError):
            for folder in self.folder.iterdir():
                run = SpooledRun(folder)
                with contextlib.suppress(SpoolError):
                    found.append((run.header, run))
        return sorted(found, key=lambda each: (bool(each[0].parent), each[0].start_time))

    def find(self, uid: str) -> SpooledRun | None:
        """The run of that name, if it is here."""
        run = SpooledRun(self.folder / _folder_name(uid))
        return run if run.exists else None


def _acquired(run: SpooledRun) -> bool:
    """Make a run's folder, and take its lock; whoever deletes it may be a moment faster."""
    for _ in range(_TRIES):
        run.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            return run.acquire()
    return False


def new_uid() -> str:
    """A name that nobody else has."""
    return uuid.uuid4().hex


def milliseconds() -> int:
    """The time, as stores count it."""
    return time.time_ns() // 1_000_000


def _folder_name(uid: str) -> str:
    return re.sub(r"[^\w.-]+", "_", uid)[:150]


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _write_whole(path: Path, text: str) -> None:
    side = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    side.write_text(text, encoding="utf-8")
    side.replace(path)
