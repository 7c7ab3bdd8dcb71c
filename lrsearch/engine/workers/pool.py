"""Worker processes on this machine: started, watched, replaced when they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Final

from lrsearch.engine.progress import SearchWatcher
from lrsearch.engine.workers.deaths import Deaths
from lrsearch.engine.workers.placement import Placement
from lrsearch.engine.workers.process import (
    LOOK,
    STOP,
    Message,
    WorkersError,
    main,
    pass_on,
    raise_failure,
)
from lrsearch.engine.workers.signals import interrupting
from lrsearch.engine.workers.spec import WorkerSpec

# A worker that is told to stop writes a checkpoint first.
_GRACE_SECONDS: Final = 60.0

_starting = threading.Lock()


@dataclass(slots=True)
class _Seat:
    """A placement, and the process that has it now."""

    placement: Placement
    watcher: SearchWatcher
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    over: bool = False


class LocalPool:
    """Runs a study with one process for each placement.

    Processes are spawned, never forked: a fork of a process in which torch has run may hang.

    Args:
        spec: what all workers do.
        seats: where they run.
        watcher: is told about their trials, each worker's beside the others'.
    """

    def __init__(
        self, spec: WorkerSpec, seats: Sequence[Placement], watcher: SearchWatcher
    ) -> None:
        self._spec = spec
        self._deaths = Deaths()
        self._ended = 0
        self._context = multiprocessing.get_context("spawn")
        self._seats = [self._start(seat, watcher.beside(seat.number)) for seat in seats]

    def run(self) -> int:
        """Work until the study is over; returns how many trials were ended here.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when all workers have kept their trials.
            Exception: what ended a worker, such as failures of several trials in a row.
            WorkersError: if workers die again and again.
        """
        try:
            with interrupting():
                while any(not seat.over for seat in self._seats):
                    self._turn()
        except BaseException:
            self.stop()
            raise
        finally:
            for seat in self._seats:
                seat.process.join(_GRACE_SECONDS)
                seat.connection.close()
        return self._ended

    def stop(self) -> None:
        """Have all workers keep their trials and end; those that do not are killed in the end."""
        for seat in self._seats:
            _tell(seat, STOP)
        end = time.monotonic() + _GRACE_SECONDS
        try:
            for seat in self._seats:
                seat.process.join(max(0.0, end - time.monotonic()))
        finally:  # a second Ctrl-C does not wait
            for seat in self._seats:
                if seat.process.is_alive():
                    seat.process.kill()

    def _turn(self) -> None:
        """Wait for something to happen, and see to it."""
        living = [seat for seat in self._seats if not seat.over]
        heard = wait([part for seat in living for part in (seat.connection, seat.process.sentinel)])
        for seat in living:
            if seat.connection in heard:
                try:
                    self._hear(seat, seat.connection.recv())
                except (EOFError, OSError):
                    self._bury(seat)
            elif seat.process.sentinel in heard:
                self._bury(seat)

    def _hear(self, seat: _Seat, message: Message) -> None:
        if message.kind == "ready":
            seat.ready = True
        elif message.kind == "done":
            seat.over = True
        elif message.kind == "failed":
            seat.over = True
            raise_failure(seat.placement.number, message)
        else:
            pass_on(message, seat.watcher)
        if message.kind == "ended":
            self._deaths.trial_ended()
            self._ended += 1
            for other in self._seats:  # what has ended may make another's trial needless
                if other is not seat:
                    _tell(other, LOOK)

    def _bury(self, seat: _Seat) -> None:
        """A process has gone without a word: another takes its seat."""
        seat.process.join()
        code = seat.process.exitcode or 0
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        number = seat.placement.number
        if not seat.ready and code > 0:
            seat.over = True
            raise WorkersError(
                f"worker {number} ended {how} before it began, see its message above: a script "
                "that calls search(workers=...) needs `if __name__ == '__main__':` around it"
            )
        try:
            self._deaths.another(number, how)
        except WorkersError:
            seat.over = True
            raise
        seat.connection.close()
        seat.watcher.trial_ended(f"worker {number}", "died", how)
        fresh = self._start(seat.placement, seat.watcher)
        seat.process, seat.connection, seat.ready = fresh.process, fresh.connection, False

    def _start(self, placement: Placement, watcher: SearchWatcher) -> _Seat:
        here, there = self._context.Pipe()
        spec = replace(self._spec, placement=placement)
        process = self._context.Process(
            target=main, args=(spec, there), name=f"lrsearch worker {placement.number}"
        )
        with _starting, _environment(placement.environment):
            process.start()
        there.close()
        return _Seat(placement, watcher, process, here)


def _tell(seat: _Seat, word: str) -> None:
    try:
        seat.connection.send(word)
    except OSError:
        return  # it has gone, or is about to


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Variables for the processes that are started in here: theirs before any import."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
