"""The MLflow UI on the store of a study, with a server that is light enough for a laptop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import IO

from lrsearch.errors import InvalidArgumentError, MissingDataError
from lrsearch_integrations.mlflow_store import (
    StoreError,
    absolute_uri,
    default_tracking_uri,
    open_client,
    shown,
    sqlite_path,
)
from lrsearch_integrations.mlflow_view import COMPARISON, STUDIES, TRIALS, has_views

HOST = "127.0.0.1"
START_SECONDS = 180.0
_WORKFLOW = "workflowType=machine_learning"  # else the UI opens on its pages for language models


def serve(uri: str | None = None, port: int = 5000) -> int:
    """Show the runs of a store until Ctrl-C; print the link.

    Args:
        uri: the store; None means ``MLFLOW_TRACKING_URI``, else ``./mlruns/mlflow.db``. For a
            server's address the link is printed, and that is all.
        port: where to serve on this machine.

    Returns:
        The exit status: 0, or 1 if the server broke down.

    Raises:
        InvalidArgumentError: if the port is taken or out of range.
        MissingDataError: if no study has been recorded in this store yet.
        StoreError: if the store cannot be opened.
    """
    store = default_tracking_uri() if uri is None else absolute_uri(uri)
    if store.startswith(("http://", "https://")):
        print(f"MLflow UI: {ui_link(store)}", flush=True)
        return 0
    path = sqlite_path(store)
    if path is not None and not path.exists():
        raise MissingDataError(f"no study is recorded in {path} yet: run lrsearch demo first")
    _require_free(port)
    base = f"http://{HOST}:{port}"
    with contextlib.suppress(KeyboardInterrupt), _terminate_as_interrupt():
        links = _links(store, base)
        with server(store, port) as process:
            print(links, "Ctrl-C ends it.", sep="\n", flush=True)
            if process.wait() != 0:
                print("lrsearch: the MLflow server has stopped", file=sys.stderr)
                return 1
    return 0


def ui_link(
    base: str,
    experiment_id: str | None = None,
    run_id: str | None = None,
    *,
    view: str | None = None,
) -> str:
    """Return the address of a page of the UI at ``base``.

    Args:
        base: the server's address.
        experiment_id: None means the list of experiments.
        run_id: a run's page; None means the table of runs.
        view: the saved view with which the table opens; None means MLflow's own.
    """
    page = f"{base.rstrip('/')}/#/experiments"
    if experiment_id is None:
        return f"{page}?{_WORKFLOW}"
    if run_id is not None:
        return f"{page}/{experiment_id}/runs/{run_id}?{_WORKFLOW}"
    key = "" if view is None else f"viewStateShareKey={view}&"
    return f"{page}/{experiment_id}/runs?{key}{_WORKFLOW}"


def ui_command(uri: str, port: int) -> list[str]:
    """Return the command that serves a store: one worker, local only."""
    path = sqlite_path(uri)
    place = ["--artifacts-destination", str(path.parent / "artifacts")] if path else []
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", uri),
        *place,
    ]


@contextlib.contextmanager
def server(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server in a process group of its own; it answers when the body starts.

    Raises:
        StoreError: if it ends or does not answer in time; with the last line of its log.
    """
    # Without its job runners the server needs a fifth of the memory and starts in half the time.
    settings = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    settings.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ui_command(uri, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=settings,
            start_new_session=True,
        )
        try:
            _wait_until_healthy(process, port, uri, log)
            yield process
        finally:
            _stop(process)


def free_port() -> int:
    """Return a port of this machine that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _links(uri: str, base: str) -> str:
    """Return what to open: the newest experiment of lrsearch, else the list of experiments."""
    experiments = open_client(uri).search_experiments(order_by=["last_update_time DESC"])
    for experiment in experiments:
        if has_views(experiment.tags):
            studies, trials, comparison = (
                ui_link(base, experiment.experiment_id, view=view)
                for view in (STUDIES, TRIALS, COMPARISON)
            )
            charts = "&compareRunsMode=CHART"
            return (
                f"MLflow UI: {studies}\ncurves: {trials}{charts}\n"
                f"ExpTest beside its baselines: {comparison}{charts}"
            )
    return f"MLflow UI: {ui_link(base)}"


def _require_free(port: int) -> None:
    if not 0 < port < 65536:
        raise InvalidArgumentError(f"port must lie between 1 and 65535, got {port}")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise InvalidArgumentError(
                f"port {port} is taken or not allowed: choose another with --port"
            ) from error


def _wait_until_healthy(
    process: subprocess.Popen[bytes], port: int, uri: str, log: IO[bytes]
) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines() or ["no message"]
    raise StoreError(f"the MLflow server on {shown(uri)} did not start: {lines[-1][:300]}")


def _stop(process: subprocess.Popen[bytes], grace: float = 10.0) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers; the group is the server's own
    process.kill()
    process.wait()


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let a SIGTERM end the server too, as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
