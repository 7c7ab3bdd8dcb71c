"""Waiting for what the tracker sends in the background, on machines that are busy with else."""

from __future__ import annotations

import time

from lrsearch_integrations.mlflow_store import spool_folder
from lrsearch_integrations.spool import Spool


def wait_until_sent(uri: str, seconds: float = 120.0) -> None:
    """Wait until a store has everything: nothing is left in its spool.

    Raises:
        AssertionError: if that takes longer.
    """
    spool, end = Spool(spool_folder(uri)), time.monotonic() + seconds
    while left := [run.header.name for run in spool.runs()]:
        assert time.monotonic() < end, f"not sent: {left}"
        time.sleep(0.1)
