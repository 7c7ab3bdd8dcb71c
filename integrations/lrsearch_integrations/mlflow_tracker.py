"""Runs in MLflow: a study, its trials, or any PyTorch training.

Values wait in a buffer and are written in batches: a call per step would cost more than the step.
Runs are named by explicit ids, never by MLflow's process-wide active run, because trials run side
by side. When the store goes away during a training, the training goes on: one warning, a buffer
of bounded size, and new attempts every half minute.

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

import atexit
import contextlib
import functools
import math
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, get_args

from lrsearch.errors import require_choice
from lrsearch.tracking import NullRun, RunStatus
from lrsearch_integrations.mlflow_api import (
    Metric,
    MlflowException,
    Param,
    Run,
    RunTag,
)
from lrsearch_integrations.mlflow_connection import Connection, is_refusal
from lrsearch_integrations.mlflow_store import (
    StoreError,
    absolute_uri,
    create_run,
    default_tracking_uri,
    experiment_id,
    explained,
    open_client,
    quiet,
    shown,
)
from lrsearch_integrations.mlflow_values import (
    PARAM_LENGTH,
    TAG_LENGTH,
    Waiting,
    number,
    safe_key,
    table_files,
    texts,
)
from lrsearch_integrations.mlflow_view import install_views

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

BATCH = 1000  # MLflow's limit for one request
FLUSH_METRICS = 500
FLUSH_SECONDS = 2.0

_PARENT = "mlflow.parentRunId"
_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
_STATE = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
# A statistic may be undefined while the training is sound; any other value that is not finite
# means that the training has diverged.
_STATISTICS = ("window/", "bound/", "lipschitz/")


def open_study_run(
    *,
    experiment: str,
    name: str,
    tracking_uri: str | None = None,
    tags: Mapping[str, object] | None = None,
) -> MlflowRun:
    """Open a run called ``name`` in ``experiment`` (the ``lrsearch.trackers`` entry point).

    Args:
        experiment: created if the store has none of this name.
        name: how the run is shown.
        tracking_uri: the store; None means ``MLFLOW_TRACKING_URI``, else ``./mlruns/mlflow.db``.
        tags: short texts; ``lrsearch.kind`` is "study" unless given.

    Raises:
        StoreError: if the store cannot be opened; one line that names it and the remedy.
    """
    uri = default_tracking_uri() if tracking_uri is None else absolute_uri(tracking_uri)
    client = open_client(uri)
    experiment_key = experiment_id(client, experiment, uri)
    with explained(uri), quiet():
        run = create_run(client, experiment_key, name, {"lrsearch.kind": "study", **(tags or {})})
    with contextlib.suppress(Exception):  # a comfort, which an older server may refuse
        install_views(client, experiment_key)
    return MlflowRun(Connection(client, uri), run, owned=True)


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
    return MlflowRun(Connection(client, uri), run, owned=False)


class MlflowRun:
    """One MLflow run, written in batches; a ``RunTracker``.

    As a context manager it finishes itself: complete, pruned (``optuna.TrialPruned``) or failed.
    A run that this process opened and never finished is closed as failed when Python exits.
    """

    def __init__(self, connection: Connection, run: Run, *, owned: bool) -> None:
        self._connection = connection
        self._client = connection.client
        self._run_id: str = run.info.run_id
        self._experiment_id: str = run.info.experiment_id
        self._owned = owned
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._waiting = Waiting()
        self._known_params: set[str] = set()
        self._flushed_at = time.monotonic()
        self._nonfinite_steps = 0
        self._last_nonfinite: int | None = None
        self._diverged = False
        self._closed = False
        _open_runs.add(self)

    @property
    def run_id(self) -> str:
        """MLflow's id of this run."""
        return self._run_id

    @property
    def tracking_uri(self) -> str:
        """The store that holds the run."""
        return self._connection.uri

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values at a step.

        Values that are not finite are counted (tag ``lrsearch.nonfinite_steps``) and not sent,
        because SQL stores replace them and the UI then hides the curve; the first in a training
        metric is recorded as ``diverged_at_step``.
        """
        now = time.time_ns() // 1_000_000
        at = int(step)
        with self._lock:
            for key, given in metrics.items():
                value = number(key, given)
                if math.isfinite(value):
                    self._waiting.add_metric(Metric(safe_key(key), value, now, at))
                else:
                    self._note_nonfinite(key, now, at)
            waiting_long = time.monotonic() - self._flushed_at >= FLUSH_SECONDS
            if len(self._waiting.metrics) >= FLUSH_METRICS or waiting_long or self._closed:
                self.flush()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings; the first value of a key stays."""
        with self._lock:
            for key, value in texts(params, PARAM_LENGTH).items():
                if key not in self._known_params:
                    self._known_params.add(key)
                    self._waiting.params[key] = value
            self.flush()

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Record or replace short texts."""
        with self._lock:
            self._waiting.tags.update(texts(tags, TAG_LENGTH))
            self.flush()

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Store a table as the artifacts ``name.parquet`` and ``name.csv``."""
        self._add_files(table_files(name, table))

    def log_figure(self, name: str, figure: Figure) -> None:
        """Store a matplotlib figure as the artifact ``name.png``."""
        stream = BytesIO()
        figure.savefig(stream, format="png", dpi=150, bbox_inches="tight")
        self._add_files({f"{name.removesuffix('.png')}.png": stream.getvalue()})

    def child(self, name: str, *, tags: Mapping[str, object] | None = None) -> MlflowRun | LostRun:
        """Open a run nested in this one; it exists in the store when this returns.

        ``lrsearch.kind`` is "trial" unless given. If the store does not answer, the training goes
        on with a run that records nothing.
        """
        given = {"lrsearch.kind": "trial", **(tags or {}), _PARENT: self._run_id}
        created: list[Run] = []
        self._connection.write(
            lambda: created.append(create_run(self._client, self._experiment_id, name, given)),
            f"open the run {name!r}, which goes unrecorded",
        )
        return MlflowRun(self._connection, created[0], owned=True) if created else LostRun()

    def flush(self) -> None:
        """Write what waits, unless the store failed a moment ago."""
        with self._lock:
            if not self._connection.resting:
                self._write()

    def finish(self, status: RunStatus) -> None:
        """Write what waits and close the run: FINISHED, KILLED (pruned) or FAILED.

        The tag ``lrsearch.trial_state`` tells them apart in Optuna's words. A second call does
        nothing.

        Raises:
            InvalidArgumentError: if the status is not one of ``RunStatus``.
        """
        require_choice("status", status, get_args(RunStatus))
        with self._lock:
            if self._closed:
                return
            self._closed = True
            _open_runs.discard(self)
            self._waiting.tags["lrsearch.trial_state"] = _STATE[status]
            if self._waiting.dropped:
                self._waiting.tags["lrsearch.dropped_metrics"] = str(self._waiting.dropped)
            if self._write():
                self._connection.write(
                    lambda: self._client.set_terminated(self._run_id, _STATUS[status]),
                    "close a run, which stays RUNNING",
                )

    def __enter__(self) -> MlflowRun:
        """Return the run itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the run with the status that the body earned."""
        if kind is None:
            self.finish("complete")
            return
        from optuna import TrialPruned

        self.finish("pruned" if issubclass(kind, TrialPruned) else "failed")

    def _note_nonfinite(self, key: str, now: int, step: int) -> None:
        if step != self._last_nonfinite:
            self._last_nonfinite = step
            self._nonfinite_steps += 1
            self._waiting.tags["lrsearch.nonfinite_steps"] = str(self._nonfinite_steps)
        if not self._diverged and not key.startswith(_STATISTICS):
            self._diverged = True
            self._waiting.add_metric(Metric("diverged_at_step", float(step), now, step))

    def _add_files(self, files: Mapping[str, bytes]) -> None:
        with self._lock:
            for name, content in files.items():
                self._waiting.add_file(name, content)
            self.flush()

    def _write(self) -> bool:
        """Send everything that waits; False if the store failed on values (files count not)."""
        self._flushed_at = time.monotonic()
        done = self._write_texts() and self._write_metrics()
        if done:
            self._write_files()
        return done

    def _write_texts(self) -> bool:
        waiting = self._waiting
        if waiting.params:
            params = [Param(key, value) for key, value in waiting.params.items()]
            if not self._send("log parameters", params=params):
                return False
            waiting.params.clear()
        if waiting.tags:
            tags = [RunTag(key, value) for key, value in waiting.tags.items()]
            if not self._send("set tags", tags=tags):
                return False
            waiting.tags.clear()
        return True

    def _write_metrics(self) -> bool:
        metrics = self._waiting.metrics
        while metrics:
            batch = list(islice(metrics, BATCH))
            if not self._send("log metrics", metrics=batch):
                return False
            for _ in batch:
                metrics.popleft()
        return True

    def _send(
        self,
        what: str,
        *,
        metrics: list[Metric] | None = None,
        params: list[Param] | None = None,
        tags: list[RunTag] | None = None,
    ) -> bool:
        return self._connection.write(
            lambda: self._client.log_batch(
                self._run_id, metrics or (), params or (), tags or (), synchronous=True
            ),
            what,
        )

    def _write_files(self) -> None:
        files = self._waiting.files
        for name in list(files):
            if not self._connection.write(
                functools.partial(self._upload, name, files[name]), f"store the artifact {name!r}"
            ):
                return
            del files[name]

    def _upload(self, name: str, content: bytes) -> None:
        place = PurePosixPath(name)
        folder = None if place.parent == PurePosixPath(".") else str(place.parent)
        with tempfile.TemporaryDirectory(prefix="lrsearch-") as temporary:
            file = Path(temporary, place.name)
            file.write_bytes(content)
            self._client.log_artifact(self._run_id, str(file), folder)

    def _close_at_exit(self) -> None:
        if self._process != os.getpid():
            return  # a forked copy: the run belongs to the parent process
        if self._owned:
            self.finish("failed")
        else:
            self._write()


class LostRun(NullRun):
    """A run that could not be opened: records nothing, so that the training can go on."""

    def __enter__(self) -> LostRun:
        """Return the run itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


_open_runs: set[MlflowRun] = set()


@atexit.register
def _close_open_runs() -> None:
    for run in list(_open_runs):
        run._close_at_exit()
