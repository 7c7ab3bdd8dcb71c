"""``lrsearch sync``: what processes that are gone have left in the spool goes to the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import inf
from pathlib import Path

from lrsearch.errors import LrsearchError
from lrsearch.tracking import SyncReport
from lrsearch_integrations.mlflow_connection import Connection
from lrsearch_integrations.mlflow_delivery import LEFT, Delivery
from lrsearch_integrations.mlflow_sender import Sender
from lrsearch_integrations.mlflow_store import (
    absolute_uri,
    default_tracking_uri,
    open_client,
    shown,
    spool_folder,
)
from lrsearch_integrations.spool import Spool, SpooledRun, milliseconds

ENDED_SILENTLY = "the process ended without a word"


def sync_spool(folder: Path | None = None, tracking_uri: str | None = None) -> Sequence[SyncReport]:
    """Send all that waits in a spool (the ``lrsearch.syncs`` entry point).

    Sending again what the store has changes nothing.

    Args:
        folder: the spool; None means ``LRSEARCH_SPOOL``, else the folder ``spool`` beside the
            store's file, or ``./mlruns/spool``.
        tracking_uri: only what is meant for this store; None means all.

    Returns:
        One report for each store that something waited for.
    """
    chosen = None if tracking_uri is None else absolute_uri(tracking_uri)
    spool = Spool(folder or spool_folder(chosen or default_tracking_uri()))
    waiting: dict[str, int] = {}
    for header, _ in spool.entries():
        uri = header.tracking_uri
        if chosen in (None, uri):
            waiting[uri] = waiting.get(uri, 0) + 1
    reports = []
    for uri, count in waiting.items():
        try:
            sender = Sender(Connection(open_client(uri), uri), spool)
        except LrsearchError as error:
            reports.append(SyncReport(shown(uri), 0, count, 0, str(error)))
            continue
        sent, left, alive = sync(sender)
        reports.append(SyncReport(shown(uri), sent, left, alive, sender.connection.trouble))
    return reports


def sync(sender: Sender, *, patience: float = inf) -> tuple[int, int, int]:
    """Send what is meant for one store, and close the runs of processes that are gone.

    A run whose end was never written is closed as failed; one that was opened by somebody else is
    left open.

    Args:
        sender: to the store.
        patience: seconds after which no further run is begun.

    Returns:
        How many runs the store now has whole, how many are left, and how many are being written
        by a living process.
    """
    sent = left = alive = 0
    end = time.monotonic() + patience
    for header, run in sender.spool.entries():
        if header.tracking_uri != sender.connection.uri or not run.exists:
            continue
        try:
            held = run.acquire()
        except FileNotFoundError:  # its folder went this very moment
            continue
        if not held:
            alive += 1
        elif not run.exists:  # another process has sent it meanwhile, and put it away
            run.remove()
        elif time.monotonic() < end and not sender.connection.resting and _sent(sender, run):
            sent += 1
        else:
            left += 1
            run.release()
    return sent, left, alive


def _may_close(sender: Sender, delivery: Delivery) -> bool:
    """Whether a run's end is missing; of a study's several writers another may have told it.

    Raises:
        OSError: if the store does not say.
    """
    if not delivery.header.owned or not delivery.header.key:
        return delivery.header.owned
    states: list[str] = []
    sender.connection.write(
        lambda: states.append(sender.connection.client.get_run(delivery.run_id).info.status),
        "tell how a run ended",
    )
    if not states:
        raise OSError(sender.connection.trouble)
    return states[0] == "RUNNING"


def _sent(sender: Sender, run: SpooledRun) -> bool:
    try:
        run.open()  # first: a line that a kill has torn would never be sent, nor what follows
        delivery = Delivery(run, sender.connection, sender.run_id_of)
        sender.deliver(delivery)
        if delivery.up_to_date and not delivery.done:
            if _may_close(sender, delivery):
                run.write("t", {"lrsearch.trial_state": "FAIL", "lrsearch.reason": ENDED_SILENTLY})
                run.write("e", "failed", milliseconds())
            else:
                run.write("e", LEFT, milliseconds())
            sender.deliver(delivery)
    except (OSError, ValueError):
        return False
    if delivery.up_to_date:
        sender.forget(delivery)
    return delivery.up_to_date
