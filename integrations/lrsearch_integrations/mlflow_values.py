"""What MLflow accepts as keys and texts, and the values that wait to be written."""

from __future__ import annotations

import json
import posixpath
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO

import pandas as pd
import pyarrow as pa

from lrsearch.errors import InvalidTypeError
from lrsearch_integrations.mlflow_api import Metric

KEY_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
WAITING_METRICS = 100_000  # about 30 MB; beyond this the oldest are given up
WAITING_FILES = 32


@dataclass(slots=True)
class Waiting:
    """Values of one run that the store does not have yet.

    Attributes:
        metrics: in the order of logging; the oldest fall out when there are too many.
        params: settings by key.
        tags: texts by key.
        files: artifacts by name; a newer one replaces an older.
        dropped: how many metrics fell out.
    """

    metrics: deque[Metric] = field(default_factory=deque)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    dropped: int = 0

    def add_metric(self, metric: Metric) -> None:
        """Queue a metric."""
        self.metrics.append(metric)
        if len(self.metrics) > WAITING_METRICS:
            self.metrics.popleft()
            self.dropped += 1

    def add_file(self, name: str, content: bytes) -> None:
        """Queue an artifact."""
        self.files.pop(name, None)
        self.files[name] = content
        if len(self.files) > WAITING_FILES:
            del self.files[next(iter(self.files))]


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
        mixed = frame.select_dtypes("object").columns
        frame = frame.assign(
            **{column: [text(value, PARAM_LENGTH) for value in frame[column]] for column in mixed}
        )
        parquet = _parquet(frame)
    return {f"{name}.parquet": parquet, f"{name}.csv": frame.to_csv(index=False).encode()}


def _parquet(frame: pd.DataFrame) -> bytes:
    stream = BytesIO()
    frame.to_parquet(stream, index=False)
    return stream.getvalue()
