"""Cells: the pieces of a reproduction that are run, kept and resumed one by one.

A cell is a small dictionary of settings. What it measured is written, whole or not at all, to a
file of its own, so a killed run keeps every finished cell and a second call goes on.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from threading import Thread
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lrsearch.errors import InvalidArgumentError, MissingDataError

Cell: TypeAlias = Mapping[str, Any]
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a cell measured.

    Attributes:
        rows: one dictionary per run, of numbers and texts.
        curves: of each row, or none at all: per-step losses, shape (steps,), or another array.
        history: of each row, or none at all: a row of numbers and texts per epoch.
        complete: False where time ran out inside the cell: it is shown, and goes on next time.
    """

    rows: Sequence[Row]
    curves: Sequence[NDArray[np.float32]] = field(default_factory=tuple)
    history: Sequence[Sequence[Row]] = field(default_factory=tuple)
    complete: bool = True


class CellStore:
    """Finished cells in a folder.

    Args:
        folder: made if missing.
        settings: of the whole reproduction: cells of other settings are other cells.
        version: of the code; kept beside each cell.

    Raises:
        InvalidArgumentError: if the folder cannot be made.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, version: str) -> None:
        self._folder, self._settings, self._version = folder, dict(settings), version
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidArgumentError(
                f"--out: cannot make the folder {str(folder)!r}: {error.strerror}"
            ) from error

    def find(self, cell: Cell) -> tuple[Measured, str] | None:
        """What a kept cell measured, and by which version; None if it is not there."""
        path = self._path(cell)
        try:
            # Opened here: numpy leaves its own file open where the archive is damaged.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                kept = json.loads(str(archive["record"]))
                curves = [archive[f"curve{i}"] for i in range(kept["curves"])]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            path.unlink(missing_ok=True)  # damaged: measured anew
            return None
        history, complete = kept.get("history", ()), kept.get("complete", True)
        return Measured(kept["rows"], curves, history, complete), str(kept["version"])

    def keep(self, cell: Cell, measured: Measured) -> None:
        """Write a cell: to a side file first, so that a kill leaves the old state or the new."""
        record = {
            "cell": dict(cell),
            "settings": self._settings,
            "version": self._version,
            "rows": list(measured.rows),
            "curves": len(measured.curves),
            "history": [list(epochs) for epochs in measured.history],
            "complete": measured.complete,
        }
        path = self._path(cell)
        side = path.with_suffix(f".{os.getpid()}.tmp")
        arrays: dict[str, NDArray[Any]] = {"record": np.array(json.dumps(record))}
        arrays |= {f"curve{i}": curve for i, curve in enumerate(measured.curves)}
        try:
            with side.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            side.replace(path)
        except OSError as error:
            side.unlink(missing_ok=True)
            raise InvalidArgumentError(
                f"--out: cannot write {str(path)!r}: {error.strerror}; what is finished is kept"
            ) from error

    def forget(self, cells: Sequence[Cell]) -> None:
        """Drop finished cells, to measure them anew."""
        for cell in cells:
            self._path(cell).unlink(missing_ok=True)

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell_name(self._settings, cell)}.npz"


def cell_name(settings: Mapping[str, Any], cell: Cell) -> str:
    """For files: readable, and another one for other settings."""
    identity = json.dumps([dict(settings), dict(cell)], sort_keys=True)
    name = re.sub(r"[^\w.+-]+", "-", "_".join(str(value) for value in cell.values()))
    return f"{name[:80]}_{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def run_cells(
    measure: Callable[[Cell], Measured],
    cells: Sequence[Cell],
    *,
    workers: int,
    seconds: float = inf,
) -> Iterator[tuple[Cell, Measured]]:
    """Measure cells, in the order in which they finish.

    Args:
        measure: picklable; called in a process of its own for each worker, with one thread.
        cells: what to measure, in the order in which they are begun.
        workers: processes; 1 measures here.
        seconds: no cell is handed out later than this; those that run are waited for.

    Raises:
        MissingDataError: if a worker was killed; what is finished has been handed out.
    """
    deadline = time.monotonic() + seconds
    if workers <= 1:
        for cell in cells:
            if time.monotonic() > deadline:
                return
            yield cell, measure(cell)
        return
    # Never forked: torch's threads do not survive it.
    pool = ProcessPoolExecutor(
        min(workers, len(cells)) or 1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare_worker,
    )
    waiting = iter(cells)
    running: dict[Future[Measured], Cell] = {}
    try:
        while True:
            # No more than run: what waits in the pool would begin after the deadline.
            while len(running) < workers and time.monotonic() < deadline:
                try:
                    cell = next(waiting)
                except StopIteration:
                    break
                running[pool.submit(measure, cell)] = cell
            if not running:
                return
            finished = wait(running, return_when=FIRST_COMPLETED).done
            # What was measured first, so that a failure beside it loses nothing.
            for done in sorted(finished, key=lambda each: each.exception() is not None):
                yield running.pop(done), done.result()
    except BrokenProcessPool as error:
        raise MissingDataError(
            "a worker process was killed; finished cells are kept: run the same command again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    import torch

    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's workers outlive a parent that is killed, and would go on measuring for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
