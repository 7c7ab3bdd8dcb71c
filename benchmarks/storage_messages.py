"""What a study sends to a storage on another machine: messages and bytes by gRPC, SQL statements.

A worker runs over Optuna's gRPC proxy (a server in this process, before a storage in memory) and
over PostgreSQL. Counted, not timed: protobuf's own sizes of requests and answers, without gRPC's
and TCP's headers (about 100 bytes a message), and the statements that SQLAlchemy executes. Counts
are of a whole trial, a beat, and a poll of a worker that waits while others have trials under way.

Run: OMP_NUM_THREADS=1 python benchmarks/storage_messages.py
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import sqlalchemy
import torch
from optuna.storages._grpc.server import make_server

from lrsearch.engine.methods import fill_queue, make_study
from lrsearch.engine.progress import SilentWatcher
from lrsearch.engine.request import SearchRequest, prepare
from lrsearch.engine.workers.loop import Worker
from lrsearch.engine.workers.running import make_worker
from lrsearch.engine.workers.spec import Durability
from lrsearch.studies.attributes import ACCEPTED, WINDOW_PREFIX
from lrsearch.studies.grpc_proxy import DeadlineProxy
from lrsearch.studies.leases import Lease, use_leases
from lrsearch.studies.patient_storage import PatientStorage
from lrsearch.studies.reaper import Reaped
from lrsearch.studies.storages import open_storage
from lrsearch.tracking import NullRun
from lrsearch_integrations.mlflow_ui import HOST, free_port

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import postgres
import worker_tasks


@dataclass(frozen=True, slots=True)
class Tally:
    """Messages (or statements), and bytes there and back."""

    messages: int = 0
    sent: int = 0
    got: int = 0

    def __sub__(self, other: Tally) -> Tally:
        return Tally(self.messages - other.messages, self.sent - other.sent, self.got - other.got)

    def over(self, count: int) -> str:
        """In words, for one of so many."""
        messages, sent, got = (each / count for each in (self.messages, self.sent, self.got))
        if not sent:
            return f"{messages:.1f} statements"
        return f"{messages:.1f} messages, {sent:.0f} bytes there, {got:.0f} back"


class Meter:
    """A storage whose traffic is counted."""

    def __init__(self, storage: optuna.storages.BaseStorage) -> None:
        self.storage = storage
        self.now = Tally()

    def note(self, sent: int, got: int) -> None:
        """Count a message."""
        now = self.now
        self.now = Tally(now.messages + 1, now.sent + sent, now.got + got)


@contextlib.contextmanager
def by_grpc() -> Iterator[Meter]:
    port = free_port()
    server = make_server(
        optuna.storages.InMemoryStorage(), HOST, port, ThreadPoolExecutor(max_workers=2)
    )
    server.start()
    proxy = DeadlineProxy(host=HOST, port=port)
    meter = Meter(PatientStorage(proxy))
    for name, call in list(vars(proxy._stub).items()):

        def counted(request: Any, call: Callable[..., Any] = call) -> Any:
            answer = call(request)
            meter.note(request.ByteSize(), answer.ByteSize())
            return answer

        setattr(proxy._stub, name, counted)
    try:
        yield meter
    finally:
        proxy.close()
        server.stop(None)


@contextlib.contextmanager
def by_postgresql() -> Iterator[Meter]:
    with postgres.serve() as server:
        storage: Any = open_storage(server.create_database("messages"))
        meter = Meter(storage)
        engine = storage.wrapped._backend.engine
        sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *_: meter.note(0, 0))
        yield meter


def begin(meter: Meter, method: str, folder: Path, factor: float = 1.0, **options: Any) -> Worker:
    """A worker of a new study."""
    request = SearchRequest(task=worker_tasks.line(), method=method, **options)
    found = prepare(request, request.resolved())
    start = replace(found.start, rate=factor * found.start.rate)
    prepared = prepare(request, request.resolved(), data=found.data, start=start)
    study = make_study(prepared.plan, name=None, storage=meter.storage, resume=False)
    use_leases(study)
    fill_queue(study, prepared.plan)
    return make_worker(
        prepared,
        study,
        NullRun(),
        watcher=SilentWatcher(),
        uid="u",
        keep_model=False,
        device="cpu",
        max_failures=3,
        durable=Durability(folder, beat_seconds=10_000.0),
        stop=threading.Event(),
    )


class Naps(threading.Event):
    """Is set after so many naps, without sleeping."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self._left = left

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is set."""
        self._left -= 1
        if self._left == 0:
            self.set()
        return self.is_set()


def of_trials(meter: Meter, folder: Path) -> None:
    for count in (10, 40):
        worker = begin(meter, "grid", folder, factor=0.01, trials=count, epochs=3)
        before = meter.now
        worker.run()
        print(f"  a trial of a queue of {count}: {(meter.now - before).over(count)}")
    accepted = {}
    for epochs in (20, 40):
        worker = begin(meter, "exptest", folder, factor=30.0, epochs=epochs)
        turns = in_turns(worker, meter)
        *rejected, complete = worker.study.get_trials(deepcopy=False)
        windows = sum(key.startswith(WINDOW_PREFIX) for key in complete.user_attrs)
        accepted[windows] = turns[len(rejected)]
    print(f"  a rung that its first window rejects: {turns[0].over(1)}")
    (few, less), (many, more) = accepted.items()
    print(f"  a rung with {few} windows that is accepted: {less.over(1)}")
    print(f"  each window more: {(more - less).over(many - few)}")


def in_turns(worker: Worker, meter: Meter) -> list[Tally]:
    """Run a worker; what it takes from each look for the dead to the next."""
    assert worker.reaper is not None
    reap, begun = worker.reaper.reap, []

    def marked() -> list[Reaped]:
        begun.append(meter.now)
        return reap()

    worker.reaper.reap = marked  # type: ignore[method-assign]
    worker.run()
    return [after - before for before, after in pairwise(begun)]


def of_the_living(meter: Meter, folder: Path, running: int) -> None:
    """Beats of one and polls of another, while so many trials run."""
    worker = begin(meter, "grid", folder, trials=running)
    trials = []
    for _ in range(running):
        trial = worker.study.ask()
        trial.suggest_float("lr", worker.plan.low, worker.plan.high, log=True)
        trials.append(trial)
    with contextlib.ExitStack() as stack:
        for trial in trials:
            lease = stack.enter_context(Lease(worker.study, "other", beat_seconds=10_000.0))
            assert lease.hold(trial)
        before = meter.now
        for _ in range(10):
            lease._beat_on()
        print(f"  a beat while {running} run: {(meter.now - before).over(10)}")
        worker.stop = Naps(10)
        before = meter.now
        worker.run()
        print(f"  a poll while {running} run: {(meter.now - before).over(10)}")


def of_a_ladder(meter: Meter, folder: Path) -> None:
    """What the lower rungs cost, and who finds none left."""
    worker = begin(meter, "exptest", folder)
    trial = worker.study.ask()
    with Lease(worker.study, "other", beat_seconds=10_000.0) as lease:
        assert lease.hold(trial)
        trial.suggest_float("lr", worker.plan.low, worker.plan.high, log=True)
        trial.set_user_attr(ACCEPTED, {"trial": trial.number, "step": 1})
        worker.stop = Naps(10)
        before = meter.now
        worker.run()
        print(f"  a poll while no rung is left: {(meter.now - before).over(10)}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    kinds: dict[str, Callable[[], contextlib.AbstractContextManager[Meter]]] = {"gRPC": by_grpc}
    if why := postgres.why_missing():
        print(f"PostgreSQL is left out: {why}")
    else:
        kinds["PostgreSQL"] = by_postgresql
    for kind, opened in kinds.items():
        print(kind, flush=True)
        with opened() as meter, TemporaryDirectory() as folder:
            of_trials(meter, Path(folder))
            for running in (1, 10, 100):
                of_the_living(meter, Path(folder), running)
            of_a_ladder(meter, Path(folder))


if __name__ == "__main__":
    main()
