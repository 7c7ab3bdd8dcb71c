"""Runs in MLflow: a study, its trials, or any PyTorch training.

What is logged goes to a file first (``spool.py``), and from there to MLflow in batches, by a thread
of its own: a call costs microseconds, whether the store is quick, slow or gone. Runs are named by
explicit ids, never by MLflow's process-wide active run, because trials run side by side. What the
store does not have when the process ends stays in the file, and ``lrsearch sync`` sends it.

Example:
    In plain PyTorch, without a study::

        from lrsearch_integrations.mlflow_tracker import open_study_run

        with open_study_run(experiment="mnist", name="plain", tags={"who": "me"}) as run:
            run.log_params({"lr": 0.1, "batch_size": 64})
            for step, (images, labels) in enumerate(loader):
                loss = loss_function(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.log_metrics({"train/loss": loss.item(), "train/lr": 0.1}, step)
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping

from lrsearch_integrations.mlflow_api import MlflowException
from lrsearch_integrations.mlflow_connection import Connection
from lrsearch_integrations.mlflow_run import WAIT_SECONDS, MlflowRun, begin_run
from lrsearch_integrations.mlflow_sender import Sender
from lrsearch_integrations.mlflow_store import (
    StoreError,
    absolute_uri,
    default_tracking_uri,
    explained,
    is_refusal,
    open_client,
    quiet,
    shown,
    spool_folder,
)
from lrsearch_integrations.mlflow_sync import sync
from lrsearch_integrations.spool import (
    Header,
    RunTakenError,
    Spool,
    SpoolError,
    milliseconds,
    new_uid,
)

__all__ = ["MlflowRun", "attach_run", "open_study_run"]


def open_study_run(
    *,
    experiment: str,
    name: str,
    tracking_uri: str | None = None,
    tags: Mapping[str, object] | None = None,
    uid: str | None = None,
) -> MlflowRun:
    """Open a run called ``name`` in ``experiment`` (the ``lrsearch.trackers`` entry point).

    A server that does not answer is no reason to wait or to stop: what is logged stays on disk,
    one warning says so, and ``lrsearch sync`` sends it.

    Args:
        experiment: created if the store has none of this name.
        name: how the run is shown.
        tracking_uri: the store; None means ``MLFLOW_TRACKING_URI``, else ``./mlruns/mlflow.db``.
        tags: short texts; ``lrsearch.kind`` is "study" unless given.
        uid: a name of the caller's own, by which a later process goes on with the same run; another
            one that is still at it may be joined.

    Raises:
        StoreError: if the address is not that of a store, or the store refuses; one line that names
            it and the remedy.
        SpoolError: if the spool cannot be written.
    """
    uri = default_tracking_uri() if tracking_uri is None else absolute_uri(tracking_uri)
    sender = Sender(Connection(open_client(uri), uri), Spool(spool_folder(uri)))
    given = {"lrsearch.kind": "study", **(tags or {})}
    run = _begun(sender, experiment, name, given, uid)
    run.require_store()
    threading.Thread(target=sync, args=(sender,), kwargs={"patience": 60.0}, daemon=True).start()
    return run


def _begun(
    sender: Sender, experiment: str, name: str, tags: Mapping[str, object], uid: str | None
) -> MlflowRun:
    """A study's run; one beside it where another process of the same study writes it."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return begin_run(sender, experiment, name, tags, uid=uid)
        except RunTakenError:
            shared = "" if uid is None else _await_run_id(sender.spool, uid, end)
            if not shared and time.monotonic() > end:
                raise
        if shared:
            beside = f"{uid}-{new_uid()[:8]}"
            return begin_run(sender, experiment, name, {}, uid=beside, run_id=shared, owned=False)
        time.sleep(0.05)  # whoever has put it away lets go of it soon


def attach_run(run_id: str, tracking_uri: str | None = None) -> MlflowRun:
    """Go on with a run that another process has opened, and that stays that process's to close.

    Raises:
        StoreError: if the store cannot be opened or has no such run.
    """
    uri = default_tracking_uri() if tracking_uri is None else absolute_uri(tracking_uri)
    client = open_client(uri)
    with explained(uri), quiet():
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if not is_refusal(error):
                raise
            raise StoreError(
                f"no run {run_id!r} in {shown(uri)}: check the id and the tracking URI"
            ) from error
        experiment = client.get_experiment(run.info.experiment_id).name
    sender = Sender(Connection(client, uri), Spool(spool_folder(uri)))
    header = Header(
        uid=f"{run_id}-{new_uid()[:8]}",
        tracking_uri=uri,
        experiment=experiment,
        name=str(run.info.run_name),
        tags={},
        start_time=milliseconds(),
        run_id=run_id,
        owned=False,
    )
    return MlflowRun(sender, header)


def _await_run_id(spool: Spool, uid: str, end: float) -> str:
    """The store's id of a run that another process has just opened, or is about to; "" if none."""
    with contextlib.suppress(SpoolError):  # put away meanwhile
        while (other := spool.find(uid)) is not None:
            known = other.mark.run_id
            if known or time.monotonic() > end:
                return known
            time.sleep(0.05)
    return ""
