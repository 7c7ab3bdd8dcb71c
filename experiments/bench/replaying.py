"""The replayed methods of a panel: computed from kept banks, and kept in their turn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.bench.measures import CASE, Bank, Banks, Case
from experiments.bench.methods import replay, unpack
from experiments.bench.panel import BANK, REPLAY, Method, Panel
from experiments.harness.cells import Cell, CellStore, Measured, run_cells
from experiments.harness.reproduction import CURVE, SEED, Results

# Fewer than so many are replayed here: processes take seconds to start.
_FEW: Final = 60


def banks_of(results: Results) -> Banks:
    """The banks among what was measured; those that failed are left out."""
    banks = {}
    for case, part in _bank_parts(results):
        packed = dict(zip(part[SEED].tolist(), results.curves_of(part), strict=True))
        banks[case] = Bank(unpack(packed), part["guess"].tolist())
    return banks


def replayed(
    panel: Panel, results: Results, *, out: Path, workers: int, version: str
) -> pd.DataFrame:
    """Rows of all replayed methods on all banks, as those of measured methods.

    Args:
        panel: has the methods.
        results: with the banks.
        out: the panel's folder; what was replayed is kept in it, until its bank changes.
        workers: processes.
        version: of the code, kept beside.
    """
    store = CellStore(out / "replays", {}, version=version)
    wanted = {name: method for name, method in panel.methods.items() if method.kind == REPLAY}
    arrays: dict[str, list[NDArray[np.float32]]] = {}
    cells: list[Cell] = []
    for (base, shift, optimizer), part in _bank_parts(results):
        curves = results.curves_of(part)
        digest = hashlib.sha256(b"".join(curve.tobytes() for curve in curves)).hexdigest()
        arrays[digest] = curves
        for name, method in wanted.items():
            if optimizer in method.optimizers:
                cells.append(
                    {
                        "base": base,
                        "shift": shift,
                        "optimizer": optimizer,
                        "method": name,
                        "name": method.name,
                        "options": json.dumps(dict(method.options), sort_keys=True),
                        "bank": digest,
                    }
                )
    missing = [cell for cell in cells if store.find(cell) is None]
    # Each cell takes its bank along, so that a worker needs nothing else.
    jobs = [{**cell, "seeds": arrays[cell["bank"]]} for cell in missing]
    for job, measured in run_cells(_replay, jobs, workers=workers if len(jobs) > _FEW else 1):
        store.keep({key: value for key, value in job.items() if key != "seeds"}, measured)
    rows: list[dict[str, Any]] = []
    for cell in cells:
        found = store.find(cell)
        if found is not None:
            rows += [{**cell, "kind": REPLAY, **row} for row in found[0].rows]
    return pd.DataFrame(rows)


def _replay(job: Cell) -> Measured:
    method = Method(REPLAY, job["name"], json.loads(job["options"]), ())
    return Measured(replay(method, unpack(dict(enumerate(job["seeds"])))))


def _bank_parts(results: Results) -> Iterator[tuple[Case, pd.DataFrame]]:
    """The rows of each bank, in the order of its seeds."""
    banks = results.rows[(results.rows["kind"] == BANK) & results.rows[CURVE].notna()]
    for key, part in banks.groupby(CASE, sort=False):
        base, shift, optimizer = map(str, key)
        yield (base, shift, optimizer), part.sort_values(SEED)
