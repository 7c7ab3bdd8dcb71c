"""Workers as tasks of a Ray cluster (``search(workers="ray")``).

A task is one worker of the study. Ray places it on a node with a free GPU, or a free core; one
whose process or node dies is begun again, wherever there is room. All else is as with any other
worker: the study in its storage, our sampler and our pruner, leases, checkpoints.

The nodes need lrsearch, and the task where ``package.module:attribute`` names it; a task that is
given as an object travels by itself. With a GPU in the cluster a task asks for one GPU, or the
part of one that ``per_device`` leaves it; always for one core.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lrsearch.engine.progress import SearchWatcher
from lrsearch.engine.workers.deaths import Deaths
from lrsearch.engine.workers.placement import Placement
from lrsearch.engine.workers.process import (
    Message,
    Teller,
    WorkersError,
    failure,
    pass_on,
    raise_failure,
)
from lrsearch.engine.workers.running import open_worker
from lrsearch.engine.workers.sharing import load_data
from lrsearch.engine.workers.signals import interruptible
from lrsearch.engine.workers.spec import Durability, WorkerSpec
from lrsearch.studies.grpc_proxy import serve
from lrsearch.studies.storages import local_file, open_storage

# A worker that is told to stop writes a checkpoint first.
_GRACE_SECONDS: Final = 60.0
_FLUSH_SECONDS: Final = 10.0
_DEATHS: Final = (WorkerCrashedError, NodeDiedError, OutOfMemoryError, LocalRayletDiedError)


class RayCrew:
    """As many workers as the cluster has GPUs now; without any, as many as it has cores.

    The cluster is that of ``ray.init`` if the program has called it; else the one that
    ``RAY_ADDRESS`` names, or one that is made on this machine, and left or ended afterwards.

    Args:
        per_device: workers on each GPU.
    """

    def __init__(self, per_device: int = 1) -> None:
        self._per_device = per_device

    def run(self, spec: WorkerSpec, watcher: SearchWatcher) -> int:
        """Work until the study is over; returns how many trials were ended here.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when the workers have kept their trials.
            WorkersError: if the cluster cannot be reached, or workers die again and again.
            Exception: what ended a worker, such as failures of several trials in a row.
        """
        with _cluster(), _reachable(spec, watcher) as shared:
            return _Run(shared, watcher, self._per_device).work()


class _Run:
    """One study's tasks: begun, heard, and begun again when they die."""

    def __init__(self, spec: WorkerSpec, watcher: SearchWatcher, per_device: int) -> None:
        count, options = _shares(ray.cluster_resources(), per_device)  # type: ignore[no-untyped-call]
        # Deaths are counted here, as with any crew: Ray's own limit is for a task's whole life.
        self._task = ray.remote(_work).options(max_retries=0, **options)
        self._data = None if spec.data_file is None else ray.put(load_data(spec.data_file))
        self._spec = replace(spec, data_file=None)
        self._mailbox = _open_mailbox()
        self._asked = self._mailbox.take.remote()
        self._watchers = [watcher.beside(number) for number in range(count)]
        self._deaths = Deaths()
        self._begun: set[int] = set()
        self._over, self._ended = False, 0
        self._numbers: dict[Any, int] = {}
        for number in range(count):
            self._start(number)

    def work(self) -> int:
        """Listen until all have ended; returns how many trials have."""
        try:
            while self._numbers:
                (heard, *_), _ = ray.wait([self._asked, *self._numbers])
                if heard == self._asked:  # first: what a worker has ended before it died, counts
                    self._listen()
                else:
                    self._see_to(heard)
        except BaseException:
            self._stop()
            raise
        finally:
            ray.kill(self._mailbox)
        return self._ended

    def _start(self, number: int) -> None:
        self._begun.discard(number)
        task = self._task.remote(self._spec, number, self._data, self._mailbox)
        self._numbers[task] = number

    def _listen(self) -> None:
        messages: list[tuple[int, Message]] = []
        with contextlib.suppress(RayError):  # its node has died; Ray makes another
            messages = ray.get(self._asked)
        self._asked = self._mailbox.take.remote()
        for number, message in messages:
            if message.kind == "ready":
                self._begun.add(number)
            else:
                pass_on(message, self._watchers[number])
            if message.kind == "ended":
                self._deaths.trial_ended()
                self._ended += 1

    def _see_to(self, task: Any) -> None:
        """A task has ended: well, with an error of the user's, or without a word."""
        number = self._numbers.pop(task)
        try:
            last: Message = ray.get(task)
        except TaskCancelledError:
            last = Message("done", (False,))
        except _DEATHS as error:
            self._replace(number, f"with Ray's {type(error).__name__}")
            return
        except RayError as error:
            *_, words = str(error).strip().splitlines() or [type(error).__name__]
            raise WorkersError(
                f"worker {number} cannot run on the cluster ({words.strip()}): install lrsearch on "
                "all its nodes, of one version"
            ) from error
        if last.kind == "failed":
            raise_failure(number, last)
        if last.content == (True,):
            self._dismiss()
        elif not self._over:
            self._replace(number, "since somebody has cancelled it")

    def _replace(self, number: int, how: str) -> None:
        self._deaths.another(number, how)
        self._watchers[number].trial_ended(f"worker {number}", "died", how)
        self._start(number)

    def _dismiss(self) -> None:
        """The study is over: tasks that still wait for room need not begin.

        Those that have begun see for themselves.
        """
        self._over = True
        for task, number in self._numbers.items():
            if number not in self._begun:
                ray.cancel(task, force=False)

    def _stop(self) -> None:
        """Have all workers keep their trials and end; those that do not are killed in the end."""
        left = list(self._numbers)
        try:
            for task in left:
                ray.cancel(task, force=False)
            if left:
                _, left = ray.wait(left, num_returns=len(left), timeout=_GRACE_SECONDS)
        finally:  # a second Ctrl-C does not wait
            for task in left:
                ray.cancel(task, force=True)


class _Mailbox:
    """An actor: keeps what workers say until the one who began them asks."""

    def __init__(self) -> None:
        self._messages: list[tuple[int, Message]] = []
        self._news = asyncio.Event()

    async def say(self, number: int, message: Message) -> None:
        """Keep a message of a worker."""
        self._messages.append((number, message))
        self._news.set()

    async def take(self) -> list[tuple[int, Message]]:
        """Wait until something has come since the last time, and hand it over."""
        await self._news.wait()
        self._news.clear()
        taken, self._messages = self._messages, []
        return taken


def _open_mailbox() -> Any:
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(_Mailbox)
        .options(
            num_cpus=0,
            max_restarts=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
        )
        .remote()
    )


def _work(spec: WorkerSpec, number: int, data: Any, mailbox: Any) -> Message:
    """Body of a task: one worker, until the study is over or Ray cancels it."""
    said: list[Any] = []

    def send(message: Message) -> None:  # nobody waits for its arrival
        said[:] = [mailbox.say.remote(number, message)]

    stop = threading.Event()
    teller = Teller(send)
    try:
        own = replace(spec, placement=_here(number), durability=_durability(spec))
        with interruptible(stop), open_worker(own, watcher=teller, stop=stop, data=data) as one:
            teller.say("ready")
            last = Message("done", (one.run(),))
    except Exception as error:
        last = Message("failed", failure(error))
    if said:  # messages arrive in order: after the last one, all have
        ray.wait(said, timeout=_FLUSH_SECONDS)
    return last


def _shares(resources: dict[str, float], per_device: int) -> tuple[int, dict[str, float]]:
    """How many tasks a cluster has room for, and what each asks for."""
    gpus = int(resources.get("GPU", 0))
    if gpus:
        return gpus * per_device, {"num_cpus": 1, "num_gpus": 1.0 / per_device}
    return max(1, int(resources.get("CPU", 1))), {"num_cpus": 1, "num_gpus": 0}


def _here(number: int) -> Placement:
    """Where this task finds itself."""
    node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's
    return _seat(number, ray.get_gpu_ids(), node)


def _seat(number: int, gpus: Sequence[int | str], node: str) -> Placement:
    """Where a task is.

    Args:
        number: of the worker.
        gpus: what Ray gave the task; ``CUDA_VISIBLE_DEVICES`` hides all others from it.
        node: address of its node.
    """
    if not gpus:
        return Placement(number, "cpu", f"cpu of {node}", threads=1)
    return Placement(number, "cuda:0", f"cuda:{gpus[0]} of {node}", threads=1)


def _durability(spec: WorkerSpec) -> Durability:
    """That of the study; on a machine that cannot have its folder, with one of its own there."""
    try:
        spec.durability.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        # Its name is the study's own, and random: nobody can have made it beforehand.
        return replace(spec.durability, folder=Path(tempfile.gettempdir(), f"lrsearch-{spec.uid}"))
    return spec.durability


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
    """The user's cluster; if there is none, one that is left again in the end."""
    if ray.is_initialized():
        yield
        return
    # What a library begins for its user does not call home in the user's name.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        named = os.environ.get("RAY_ADDRESS")
        where = f"RAY_ADDRESS={named!r}" if named else "a cluster on this machine"
        raise WorkersError(
            f"workers='ray': {where} cannot be had ({str(error).splitlines()[0]}): "
            "check it with `ray status`, or call ray.init before"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _reachable(spec: WorkerSpec, watcher: SearchWatcher) -> Iterator[WorkerSpec]:
    """A study in a file of this machine is served to the others, for as long as the search runs."""
    here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's
    if _machines() <= {here}:
        yield spec
        return
    if spec.tracking_uri is not None and local_file(spec.tracking_uri) is not None:
        watcher.noted(
            "the runs of trials on other machines are recorded there, since the tracker's store "
            "is a file: a server's tracking_uri has them all"
        )
    if local_file(spec.storage) is None:
        yield spec
        return
    with serve(open_storage(spec.storage), here) as port:
        host = f"[{here}]" if ":" in here else here
        yield replace(spec, storage=f"grpc://{host}:{port}")


def _machines() -> set[str]:
    """Addresses of the cluster's living nodes."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    return {node["NodeManagerAddress"] for node in nodes if node["Alive"]}
