"""What MLflow accepts as keys, texts and files."""

from __future__ import annotations

import json
import posixpath
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_object_dtype

from lrsearch.errors import InvalidTypeError
from lrsearch_integrations.spool import SpooledRun

KEY_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 8000


def number(key: str, value: object) -> float:
    """Return a metric's value as a float: a number, or a tensor or array of one element.

    Raises:
        InvalidTypeError: if it is none of these.
    """
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)  # type: ignore[arg-type]  # what float() refuses is caught below
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(f"metric {key!r} must be a number, got {value!r}") from error


def safe_key(key: str) -> str:
    """Return the nearest key that MLflow accepts: one bad key would cost its whole batch."""
    plain = re.sub(r"[^\w/.\-: ]", "_", str(key))[:KEY_LENGTH]
    return posixpath.normpath(f"/{plain}").strip("/") or "_"


def text(value: object, limit: int) -> str:
    """Return a setting as text; lists and mappings as JSON, what is too long with an ellipsis."""
    plain = (
        json.dumps(value, default=str, ensure_ascii=False)
        if isinstance(value, (Mapping, list, tuple))
        else str(value)
    )
    return plain if len(plain) <= limit else f"{plain[: limit - 1]}…"


def texts(values: Mapping[str, object], limit: int) -> dict[str, str]:
    """Return settings with keys and texts that MLflow accepts."""
    return {safe_key(key): text(value, limit) for key, value in values.items()}


def table_files(name: str, table: pd.DataFrame) -> dict[str, bytes]:
    """Return a table as Parquet and CSV files with equal contents.

    A meaningful index becomes columns. Columns that Parquet cannot hold (mixed kinds) become text
    in both.
    """
    frame = table if isinstance(table.index, pd.RangeIndex) else table.reset_index()
    try:
        parquet = _parquet(frame)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        mixed = [column for column in map(str, frame) if is_object_dtype(frame[column])]
        frame = frame.assign(
            **{column: [text(value, PARAM_LENGTH) for value in frame[column]] for column in mixed}
        )
        parquet = _parquet(frame)
    return {f"{name}.parquet": parquet, f"{name}.csv": frame.to_csv(index=False).encode()}


def steps_file(run: SpooledRun, path: Path) -> bool:
    """Write every step's loss and rate as a Parquet table; False if the run kept none.

    Columns: step, loss [loss], lr. Where a step was kept twice (a training that went on from a
    checkpoint), the later counts.
    """
    pieces = list(_stretches(run))
    if not pieces:
        return False
    table = pd.concat(pieces, ignore_index=True)
    table = table.drop_duplicates("step", keep="last").sort_values("step")
    table.to_parquet(path, index=False)
    return True


def _stretches(run: SpooledRun) -> Iterator[pd.DataFrame]:
    for kind, *content in run.records():
        if kind == "s":
            start, lr, encoded = content
            losses = np.frombuffer(b64decode(encoded), dtype="<f8")
            steps = np.arange(start, start + len(losses))
            yield pd.DataFrame({"step": steps, "loss": losses, "lr": lr})


def _parquet(frame: pd.DataFrame) -> bytes:
    stream = BytesIO()
    frame.to_parquet(stream, index=False)
    return stream.getvalue()
