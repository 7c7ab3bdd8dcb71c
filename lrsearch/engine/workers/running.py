"""A worker with all that it needs: storage, study, data on its device, tracker, lease."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import torch

from lrsearch.engine.objective import Objective
from lrsearch.engine.progress import SearchWatcher
from lrsearch.engine.provenance import data_record
from lrsearch.engine.record import open_run
from lrsearch.engine.request import Prepared, SearchRequest, prepare
from lrsearch.engine.workers.keepsakes import Keepsakes
from lrsearch.engine.workers.loop import Worker
from lrsearch.engine.workers.sharing import load_data, moved
from lrsearch.engine.workers.spec import Durability, WorkerSpec
from lrsearch.studies.leases import Lease
from lrsearch.studies.quiet import quiet_optuna
from lrsearch.studies.reaper import Reaper
from lrsearch.studies.storages import open_storage
from lrsearch.tracking import NullRun, RunTracker
from lrsearch.training.task import TaskData, TrainingTask


def title_of(request: SearchRequest, task: TrainingTask) -> str:
    """How a study's run is called in the tracker."""
    return f"{task.name} {request.method} seed {request.seed}"


def make_worker(
    prepared: Prepared,
    study: optuna.Study,
    run: RunTracker,
    *,
    watcher: SearchWatcher,
    uid: str,
    keep_model: bool,
    device: str,
    max_failures: int,
    durable: Durability | None,
    stop: threading.Event,
    label: str = "",
) -> Worker:
    """A worker of a study, in this process.

    Args:
        prepared: what is trained.
        study: with the plan's sampler and pruner.
        run: of the study, in the tracker.
        watcher, uid, keep_model, max_failures: see ``WorkerSpec``.
        device: what its tensors live on.
        durable: None for a study that ends with this process.
        stop: asks it to end.
        label: its device, as a person calls it.
    """
    method = prepared.request.method
    data = prepared.data if device == "cpu" else moved(prepared.data, device)
    recorded = type(run) is not NullRun  # one built on it may record
    objective = Objective(
        task=prepared.task,
        data=data,
        plan=prepared.plan,
        settings=prepared.settings,
        seed=prepared.request.seed,
        run=run,
        kind="trial" if method in ("exptest", "lipschitz") else "baseline",
        method=method,
        watcher=watcher,
        start=prepared.start,
        uid=uid,
        seen=data_record(data) if recorded else None,
        keep_model=keep_model,
        device=device,
        device_label=label or device,
    )
    worker = Worker(study, prepared.plan, objective, stop=stop, max_failures=max_failures)
    if durable is not None:
        durable.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        objective.checkpoints = durable.folder
        objective.checkpoint_seconds = durable.checkpoint_seconds
        worker.keepsakes = Keepsakes(durable.folder)
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        worker.lease = Lease(study, name, beat_seconds=durable.beat_seconds, on_beat=worker.look)
        worker.reaper = Reaper(study, lease_seconds=durable.lease_seconds)
    return worker


@contextmanager
def open_worker(
    spec: WorkerSpec,
    *,
    watcher: SearchWatcher,
    stop: threading.Event,
    data: TaskData | None = None,
) -> Iterator[Worker]:
    """A worker of a study that another process has begun.

    Args:
        spec: of the study.
        watcher: is told how it goes.
        stop: asks it to end.
        data: if they are here already.

    Raises:
        InvalidArgumentError: if storage or study cannot be opened.
    """
    seat, request = spec.placement, spec.request
    torch.set_num_threads(seat.threads)
    task = request.resolved()
    if data is None and spec.data_file is not None:
        data = load_data(spec.data_file)
    prepared = prepare(request, task, data=data, start=spec.start, worker=spec.draws + seat.number)
    plan = prepared.plan
    with quiet_optuna():
        study = optuna.load_study(
            study_name=spec.study_name,
            storage=open_storage(spec.storage),
            sampler=plan.sampler,
            pruner=plan.pruner,
        )
        run = open_run(
            spec.tracker,
            spec.experiment,
            title_of(request, task),
            spec.tracking_uri,
            request.method,
            uid=spec.uid,
        )
        try:
            yield make_worker(
                prepared,
                study,
                run,
                watcher=watcher,
                uid=spec.uid,
                keep_model=spec.keep_model,
                device=seat.device,
                max_failures=spec.max_failures,
                durable=spec.durability,
                stop=stop,
                label=seat.label,
            )
        finally:
            run.leave()
