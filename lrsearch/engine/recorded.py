"""Loss curves that somebody has kept: where they are read from, and what ExpTest says of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from lrsearch.controllers.replay import first_look, level_of, replay
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.result import finite
from lrsearch.errors import (
    InvalidArgumentError,
    MissingDataError,
    MissingPackageError,
    require_positive,
)
from lrsearch.tracking import RecordedCurve, find_curves
from lrsearch.windows import WindowStats

LOSS_COLUMNS = ("loss", "train/loss")
STEP_COLUMN = "step"
_ARCHIVE = re.compile(r"(?P<path>.+\.npz)(?::(?P<key>[^\[\]]+)(?:\[(?P<row>\d+)\])?)?")
_RUN = re.compile(r"[\w-]+")

Verdict = Literal["accepted", "rejected", "undecided"]


@dataclass(frozen=True, slots=True)
class Replay:
    """What ExpTest would have decided along a recorded curve.

    Attributes:
        curve: as it was read.
        settings: of the machine; ``total_steps`` in gradient steps.
        lr: rate of the first step.
        spacing: gradient steps from one kept loss to the next; a window of w steps then holds
            w / spacing losses, at least 30 in "robust" mode.
        windows: every look, in gradient steps.
        needed: gradient steps that the first look needs.
    """

    curve: RecordedCurve
    settings: ExpTestSettings
    lr: float
    spacing: float
    windows: list[WindowStats]
    needed: int

    @property
    def search(self) -> list[WindowStats]:
        """The looks at which the rate itself was judged."""
        return [window for window in self.windows if window.phase == "searching"]

    @property
    def deciding(self) -> WindowStats | None:
        """The window that rejected the rate, else the one that accepted it, else None."""
        wanted = {"rejected": ("restart", "stop"), "accepted": ("accept",), "undecided": ()}
        kinds = wanted[self.verdict]
        return next((window for window in self.windows if window.decision in kinds), None)

    def level(self, window: WindowStats) -> float:
        """Level at which a window was tested: the looks at a window share alpha."""
        return level_of(window, self.windows, self.settings)

    @property
    def verdict(self) -> Verdict:
        """What became of the rate by the end of the curve."""
        kinds = {window.decision for window in self.windows}
        if kinds & {"restart", "stop"}:
            return "rejected"
        return "accepted" if "accept" in kinds else "undecided"

    def as_json(self) -> dict[str, Any]:
        """The replay as plain JSON: numbers that are not finite are null."""
        window = self.deciding
        settings = self.settings
        return {
            "lr": self.lr,
            "mode": settings.mode,
            "alpha": settings.alpha,
            "beta": settings.beta,
            "full_batch": settings.full_batch,
            "total_steps": settings.total_steps,
            "losses": len(self.curve.losses),
            "spacing": self.spacing,
            "verdict": self.verdict,
            "step": None if window is None else window.last_step,
            "reason": None if window is None else window.reason,
            "pvalue": None if window is None else finite(window.pvalue),
            "windows": [
                {key: finite(value) for key, value in each.as_dict().items()}
                for each in self.windows
            ],
        }


def replay_curve(
    curve: RecordedCurve, settings: ExpTestSettings, *, lr: float | None = None
) -> Replay:
    """Walk ExpTest along a recorded curve, with window correction 1.

    Args:
        curve: at least one loss.
        settings: of the machine; ``total_steps`` in gradient steps.
        lr: rate of the first step; None takes the one that was recorded.

    Raises:
        ValueError: if no rate is known, or it is not positive.
    """
    given = curve.lr if lr is None else lr
    if given is None:
        raise InvalidArgumentError("lr is not recorded with this curve: name the rate by --lr")
    rate = require_positive("lr", given)
    gaps = np.diff(np.asarray(curve.steps, dtype=np.float64))
    spacing = max(1.0, float(np.median(gaps))) if gaps.size else 1.0
    total = settings.total_steps
    # A window of w steps holds w / spacing losses: the same as a rate that much larger.
    by_point = replace(settings, total_steps=total and max(1, round(total / spacing)))
    first = float(curve.losses[0])
    needed = first_look(by_point, first if isfinite(first) else 0.0, lr=rate * spacing)
    looks = replay(by_point, curve.losses, lr=rate * spacing)
    return Replay(
        curve=curve,
        settings=settings,
        lr=rate,
        spacing=spacing,
        windows=[_in_steps(look, curve.steps, spacing) for look in looks],
        needed=round(needed * spacing),
    )


def read_curve(
    source: str, *, column: str | None = None, tracking_uri: str | None = None
) -> RecordedCurve:
    """Read a loss curve.

    Args:
        source: a CSV or Parquet file; ``FILE.npz:KEY`` or ``FILE.npz:KEY[ROW]``; else the id of an
            MLflow run.
        column: of the losses (of a run: the metric). By default "loss" or "train/loss", else the
            only column of numbers; "train/loss" of a run. A column "step" gives the steps.
        tracking_uri: the store of the run; None means the tracker's own default.

    Raises:
        MissingDataError: if there is no such file, array, column or run.
        ValueError: if it does not hold one curve of numbers.
        MissingPackageError: if reading it takes a package that is not installed.
    """
    archive = _ARCHIVE.fullmatch(source)
    if archive is not None:
        row = archive["row"]
        return _read_archive(
            Path(archive["path"]), archive["key"], None if row is None else int(row)
        )
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is not None:
        if not path.is_file():
            raise MissingDataError(f"no file {source!r}: check the name and the folder")
        return _curve_of(_load(path, reader), column, source)
    if path.exists() or not _RUN.fullmatch(source):
        raise InvalidArgumentError(
            f"cannot tell what {source!r} is: give FILE.csv, FILE.parquet, FILE.npz:KEY[ROW] "
            "or the id of a run"
        )
    metric = column or "train/loss"
    return find_curves("mlflow")(source, metric=metric, tracking_uri=tracking_uri)


def _in_steps(window: WindowStats, steps: Sequence[int], spacing: float) -> WindowStats:
    """A window that was counted in kept losses, in gradient steps."""
    return replace(
        window,
        start=steps[window.start],
        stop=steps[window.stop - 1] + 1,
        length=round(window.length * spacing),
        lr=window.lr / spacing,
        slope=window.slope / spacing,
    )


# --- tables ----------------------------------------------------------------------------------


def _read_csv(path: Path) -> pd.DataFrame:
    """Cells as they are written: an empty one is no loss, "nan" is one that diverged."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    if all(_is_number(name) for name in table.columns):  # no header
        table = pd.read_csv(path, dtype=str, keep_default_na=False, header=None)
    return table.rename(columns=str)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".parquet": pd.read_parquet,
}


def _load(path: Path, reader: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    try:
        return reader(path)
    except ImportError as error:
        raise MissingPackageError(
            f"{path} needs a package that reads Parquet: pip install pyarrow"
        ) from error
    except Exception as error:  # each reader has its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MissingDataError(f"{path} cannot be read ({reason}): write it anew") from error


def _curve_of(table: pd.DataFrame, column: str | None, source: str) -> RecordedCurve:
    name = _loss_column(table, column, source)
    cells = table[name].to_numpy(dtype=object)
    kept = np.array([not (isinstance(cell, str) and not cell.strip()) for cell in cells], bool)
    losses = _numbers(cells[kept], f"column {name!r} of {source}")
    if STEP_COLUMN not in table.columns or name == STEP_COLUMN:
        return _checked(range(len(losses)), losses, source)
    steps = _numbers(table[STEP_COLUMN].to_numpy(dtype=object)[kept], f"column 'step' of {source}")
    if not np.all(np.isfinite(steps)) or np.any(steps != np.round(steps)):
        raise InvalidArgumentError(f"column 'step' of {source} must hold whole numbers only")
    order = np.argsort(steps, kind="stable")
    return _checked([int(step) for step in steps[order]], losses[order], source)


def _loss_column(table: pd.DataFrame, column: str | None, source: str) -> str:
    names = [str(name) for name in table.columns]
    if column is not None:
        if column not in names:
            raise MissingDataError(f"no column {column!r} in {source}: it has {_listed(names)}")
        return column
    found = [name for name in LOSS_COLUMNS if name in names]
    if not found:
        found = [name for name in names if name != STEP_COLUMN and _is_numeric(table[name])]
    if len(found) != 1:
        raise MissingDataError(
            f"which column of {source} is the loss? It has {_listed(names)}: name it by --column"
        )
    return found[0]


def _is_numeric(cells: pd.Series[Any]) -> bool:
    return all(_is_number(cell) or not str(cell).strip() for cell in cells)


def _is_number(cell: object) -> bool:
    try:
        float(cell)  # type: ignore[arg-type]  # whether it is one is the question
    except (TypeError, ValueError):
        return False
    return True


def _numbers(cells: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    wrong = next((cell for cell in cells if not _is_number(cell)), None)
    if wrong is not None:
        raise InvalidArgumentError(f"{what} must hold numbers, got {wrong!r}")
    return np.array([float(cell) for cell in cells], dtype=np.float64)


# --- archives --------------------------------------------------------------------------------


def _read_archive(path: Path, key: str | None, row: int | None) -> RecordedCurve:
    if not path.is_file():
        raise MissingDataError(f"no file {str(path)!r}: check the name and the folder")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            if key is None and len(names) == 1:
                key = names[0]
            array = archive[key] if key in names else None
    except Exception as error:  # a damaged zip raises whatever it meets
        raise MissingDataError(
            f"{path} cannot be read as an archive of numbers: write it anew with numpy.savez"
        ) from error
    if array is None:
        asked = "name one array" if key is None else f"no array {key!r}"
        raise MissingDataError(f"{asked} of {path} as {path.name}:KEY, KEY of {_listed(names)}")
    what = f"{path}:{key}"
    if array.dtype.kind not in "fiu":
        raise InvalidArgumentError(f"{what} must hold numbers, got {array.dtype}")
    if array.ndim == 2 and row is not None:
        if row >= len(array):
            raise MissingDataError(f"{what} has rows 0 to {len(array) - 1}, got {row}")
        array, row = array[row], None
    if array.ndim != 1 or row is not None:
        remedy = f"choose a row: {what}[0]" if array.ndim == 2 else "give one curve"
        raise InvalidArgumentError(f"{what} has shape {array.shape}: {remedy}")
    return _checked(range(len(array)), np.asarray(array, dtype=np.float64), what)


def _checked(
    steps: Sequence[int], losses: np.ndarray[Any, np.dtype[np.float64]], source: str
) -> RecordedCurve:
    if not len(losses):
        raise MissingDataError(f"{source} holds no losses")
    twice = np.flatnonzero(np.diff(np.asarray(steps)) == 0)
    if twice.size:
        raise InvalidArgumentError(
            f"{source} has step {steps[int(twice[0])]} twice: keep one run in a file"
        )
    return RecordedCurve(steps, losses.tolist())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return f"{shown}, ..." if len(names) > 8 else shown or "none"
