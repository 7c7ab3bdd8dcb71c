"""Cost and gain of workers: what the loop adds to Optuna's, what two save, what each thing takes.

trials   trials per second of our worker loop (lease, look for the dead, the storage as
         ``open_storage`` gives it) over an empty objective, beside ``study.optimize`` on the same
         storage with the same sampler. Paired, in turn, a fresh study a block; the ratio of times
         with its 95 % interval, from the logarithms.
grid     wall seconds of a nine-point grid with one and with two workers; the time until the first
         trial begins, which is that of the processes' start, is named apart. A step of the task
         takes 4 ms in which the processor is idle, as it is beside a GPU: what is measured is the
         pool, not how the cores of this machine are shared with others.
ladder   seconds to ExpTest's answer on that task from a start that is far too high.
costs    start of a worker's process, a checkpoint, a trial's record in MLflow, a lease's beat.
steps    a training step with a keeper and all that may interrupt it, beside one without: paired
         blocks, as in overhead.py.

Where a machine is busy, processor time (of this process and its children) tells more than wall
time. PostgreSQL's own is not in it, and PostgreSQL is left out where it is not installed.

Run: OMP_NUM_THREADS=1 python benchmarks/workers.py [trials] [grid] [ladder] [costs] [steps]
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import torch
from optuna.samplers import RandomSampler
from scipy.stats import t as student
from torch import nn

from lrsearch import ExpTest, search
from lrsearch.engine import start as starting
from lrsearch.engine.methods import LR, Plan, fill_queue, make_study
from lrsearch.engine.objective import Objective
from lrsearch.engine.progress import SilentWatcher
from lrsearch.engine.record import open_run
from lrsearch.engine.request import SearchRequest, prepare
from lrsearch.engine.workers.loop import Worker
from lrsearch.engine.workers.placement import ANYWHERE
from lrsearch.engine.workers.process import main as worker_process
from lrsearch.engine.workers.spec import Durability, WorkerSpec
from lrsearch.studies.leases import Lease, use_leases
from lrsearch.studies.reaper import Reaper
from lrsearch.studies.storages import open_storage
from lrsearch.training.checkpoints import Checkpoint
from lrsearch.training.keeping import Keeper
from lrsearch.training.loop import make_optimizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import postgres

TASK, LOW, HIGH = "digits-mlp", 1e-4, 1.0
PARTS = ("trials", "grid", "ladder", "costs", "steps")


class Empty:
    """An objective that takes a rate and does nothing with it."""

    interrupted: object = None
    last = None
    keep_model = False

    def __call__(self, trial: optuna.Trial) -> float:
        """Return the rate."""
        return trial.suggest_float(LR, LOW, HIGH, log=True)

    def discard(self, number: int) -> None:
        """Nothing was kept."""


def make_worker(study: optuna.Study, plan: Plan) -> Worker:
    """A worker as a study in a storage has it, over an empty objective."""
    use_leases(study)
    fill_queue(study, plan)
    return Worker(
        study, plan, cast(Objective, Empty()), lease=Lease(study, "bench"), reaper=Reaper(study)
    )


def make_plan(trials: int) -> Plan:
    queue: tuple[dict[str, float], ...] = ({},) * trials
    sampler = RandomSampler(seed=0)
    return Plan(LOW, HIGH, sampler, optuna.pruners.NopPruner(), trials, queue=queue)


def clocks() -> np.ndarray:
    """Wall seconds, and processor seconds of this process and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)])


def timed(work: Callable[[], object]) -> np.ndarray:
    began = clocks()
    work()
    return clocks() - began


def interval(logs: np.ndarray) -> str:
    """Of the ratio whose logarithms are given: mean and its 95 % interval."""
    half = student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, middle, high = np.exp(logs.mean() + half * np.array([-1, 0, 1]))
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


@contextlib.contextmanager
def storages(folder: Path) -> Iterator[dict[str, optuna.storages.BaseStorage]]:
    opened: dict[str, optuna.storages.BaseStorage] = {
        "in memory": optuna.storages.InMemoryStorage(),
        "journal": open_storage(f"journal:{folder / 'bench.journal'}"),
        "SQLite": open_storage(f"sqlite:///{folder / 'bench.db'}"),
    }
    with contextlib.ExitStack() as stack:
        if why := postgres.why_missing():
            print(f"  PostgreSQL is left out: {why}")
        else:
            server = stack.enter_context(postgres.serve())
            opened["PostgreSQL"] = open_storage(server.create_database("bench"))
        yield opened


def trials(options: argparse.Namespace) -> None:
    print("  storage      bare trials/s  ours trials/s  times as long: wall     processor")
    with (
        tempfile.TemporaryDirectory() as folder,
        storages(Path(folder)) as opened,
    ):
        for name, storage in opened.items():
            count = options.trials if name in ("in memory", "journal") else options.trials // 4
            plan = make_plan(count)

            def bare(storage: Any = storage, plan: Plan = plan, count: int = count) -> None:
                study = make_study(plan, name=None, storage=storage, resume=False)
                study.optimize(Empty(), n_trials=count)

            def ours(storage: Any = storage, plan: Plan = plan) -> None:
                study = make_study(plan, name=None, storage=storage, resume=False)
                make_worker(study, plan).run()

            bare(), ours()
            rows = []
            for number in range(options.pairs):
                order = (bare, ours) if number % 2 else (ours, bare)
                times = {work: timed(work) for work in order}
                rows.append([times[bare], times[ours]])
            seconds = np.array(rows)
            logs = np.log(seconds[:, 1] / seconds[:, 0])
            rates = count / np.median(seconds[:, :, 0], axis=0)
            print(
                f"  {name:<12} {rates[0]:13.1f}  {rates[1]:13.1f}  "
                f"{interval(logs[:, 0]):<20}    {interval(logs[:, 1])}",
                flush=True,
            )


@dataclass
class Stamps(SilentWatcher):
    """Notes when the first trial begins."""

    began: float = 0.0

    def trial_started(self, name: str, lr: float, total: int) -> None:
        """Note it."""
        self.began = self.began or time.perf_counter()

    def beside(self, number: int) -> Stamps:
        """Return itself."""
        return self


def studied(workers: int, **options: Any) -> np.ndarray:
    """Wall seconds in all and until the first trial, processor seconds, steps."""
    with tempfile.TemporaryDirectory() as folder:
        watcher, began = Stamps(), clocks()
        result = search(
            "worker_tasks:slow_line",
            workers=workers,
            tracker="none",
            storage=f"journal:{folder}/study.journal",
            study_name="bench",
            watcher=watcher,
            **options,
        )
        wall, processor = clocks() - began
    return np.array([wall, watcher.began - began[0], processor, result.steps])


def one_and_two(pairs: int, **options: Any) -> None:
    rows = []
    for number in range(pairs):
        order = (1, 2) if number % 2 else (2, 1)
        times = {workers: studied(workers, **options) for workers in order}
        rows.append([times[1], times[2]])
        one, two = times[1], times[2]
        print(
            f"  one worker {one[0]:.1f} s wall ({one[1]:.1f} s before the first trial), "
            f"{one[2]:.1f} s CPU, {one[3]:.0f} steps; two {two[0]:.1f} s ({two[1]:.1f} s), "
            f"{two[2]:.1f} s CPU, {two[3]:.0f} steps",
            flush=True,
        )
    times = np.array(rows)
    logs = np.log(times[:, 0, 0] / times[:, 1, 0])
    net = times[:, :, 0] - times[:, :, 1]
    print(
        f"  two workers are so many times as fast: {interval(logs)}; from the first trial on "
        f"{interval(np.log(net[:, 0] / net[:, 1]))}"
    )


def grid(options: argparse.Namespace) -> None:
    epochs = max(1, round(options.seconds / 0.04))  # ten steps each
    print(f"  nine trials of {epochs} epochs; two workers can be at most 1.8 times as fast")
    one_and_two(options.studies, method="grid", epochs=epochs)


def ladder(options: argparse.Namespace) -> None:
    true_bound = starting.rate_bound
    starting.rate_bound = lambda *given: (  # type: ignore[attr-defined]
        replace(found := true_bound(*given), lr_max=found.lr_max * options.factor)
    )
    print(f"  ExpTest on a line, started at {options.factor:g} times the bound")
    one_and_two(options.studies, method="exptest")
    starting.rate_bound = true_bound  # type: ignore[attr-defined]


def spawned(spec: WorkerSpec) -> float:
    """Seconds until a worker's process is ready."""
    context = multiprocessing.get_context("spawn")
    here, there = cast(tuple[Connection, Connection], context.Pipe())
    began = time.perf_counter()
    process = context.Process(target=worker_process, args=(spec, there))
    process.start()
    message = here.recv()
    seconds = time.perf_counter() - began
    assert message.kind == "ready", message
    process.join()
    return seconds


def starts(folder: Path, repeats: int, tracker: str) -> None:
    url = f"journal:{folder / tracker}.journal"
    request = SearchRequest(task=TASK, method="grid")
    prepared = prepare(request, request.resolved())
    study = make_study(prepared.plan, name="over", storage=open_storage(url), resume=False)
    study.add_trial(optuna.trial.create_trial(value=0.0))  # all that there is to do
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    spec = WorkerSpec(
        request=request,
        start=prepared.start,
        storage=url,
        study_name="over",
        uid="bench",
        tracker=tracker,
        tracking_uri=uri,
        experiment="bench",
        data_file=None,
        placement=ANYWHERE,
        keep_model=False,
        max_failures=1,
        durability=Durability(folder / "kept"),
    )
    if tracker == "mlflow":  # the study's own run is there before its workers
        open_run("mlflow", "bench", "over", uri, "grid", uid="bench").leave()
    rows = [(spawned(spec),) for _ in range(repeats)]
    used = clocks()[1]
    spawned(spec)
    used = clocks()[1] - used
    seconds = np.array(rows)[:, 0]
    print(
        f"  a worker's process until it is ready, record {tracker}: {np.median(seconds):.1f} s "
        f"wall ({seconds.min():.1f} to {seconds.max():.1f}), {used:.1f} s CPU to its end"
    )


MODELS = {"digits MLP": None, "1M": (784, 800, 450, 10), "10M": (784, 3000, 2500, 10)}


def make_training(name: str, optimizer: str) -> tuple[nn.Module, torch.optim.Optimizer, ExpTest]:
    """A model that has taken a step, with its optimizer's moments, and ExpTest over it."""
    torch.manual_seed(0)
    widths = MODELS[name]
    if widths is None:
        request = SearchRequest(task=TASK)
        task = request.resolved()
        data = task.data(0)
        model, inputs = task.model(data), data.train.inputs[:32]
    else:
        first, *rest, last = widths
        layers: list[nn.Module] = []
        for before, after in zip((first, *rest), rest, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        model, inputs = nn.Sequential(*layers, nn.Linear(rest[-1], last)), torch.randn(32, first)
    made = make_optimizer(optimizer, list(model.parameters()), 1e-6)
    controller = ExpTest(made, model=model, total_steps=10**9)
    loss = nn.functional.cross_entropy(model(inputs), torch.zeros(len(inputs), dtype=torch.long))
    loss.backward()
    made.step()
    controller.step(loss)
    return model, made, controller


def checkpoints(folder: Path, repeats: int) -> None:
    for name in MODELS:
        for optimizer in ("momentum", "adam"):
            model, made, controller = make_training(name, optimizer)
            file = folder / f"{name}-{optimizer}.pt"
            keeper = Keeper(Checkpoint(file))
            keeper.begin(model, made, controller)
            keeper.save()
            times = 1e3 * np.array([timed(keeper.save) for _ in range(repeats)])
            count = sum(parameter.numel() for parameter in model.parameters())
            wall, processor = np.median(times, axis=0)
            print(
                f"  a checkpoint of {name} ({count:,} parameters), {optimizer}: {wall:.1f} ms wall "
                f"({times[:, 0].min():.1f} to {times[:, 0].max():.1f}), {processor:.1f} ms CPU, "
                f"{file.stat().st_size / 1e6:.3g} MB",
                flush=True,
            )


def records(folder: Path, repeats: int) -> None:
    uri = f"sqlite:///{folder / 'records.db'}"
    run = open_run("mlflow", "bench", "records", uri, "grid", uid="records")

    def record(number: int) -> None:
        child = run.child(f"trial {number}", tags={"lrsearch.kind": "baseline"}, uid=f"r-{number}")
        child.log_params({"lr": 0.1, "number": number, "seed": 0, "device": "cpu"})
        for step in range(0, 1000, 10):
            child.log_metrics({"train/loss": 1.0}, step)
        child.log_metrics({"val/loss": 1.0, "test/loss": 1.0, "steps": 1000.0}, 1000)
        child.finish("complete")

    record(0)
    times = 1e3 * np.array([timed(lambda number=n: record(number)) for n in range(1, repeats)])
    ended = timed(lambda: run.finish("complete"))
    wall, processor = np.median(times, axis=0)
    print(
        f"  a trial's record of 100 losses, to its end: {wall:.0f} ms wall "
        f"({times[:, 0].min():.0f} to {times[:, 0].max():.0f}), {processor:.0f} ms CPU with the "
        f"sender's; the study's end {ended[0]:.2f} s"
    )


def beats(folder: Path, repeats: int) -> None:
    with storages(folder) as opened:
        for name, storage in opened.items():
            study = optuna.create_study(storage=storage, sampler=RandomSampler(seed=0))
            with Lease(study, "bench", beat_seconds=10_000.0) as lease:
                assert lease.hold(study.ask())
                times = 1e3 * np.array([timed(lease._beat_on) for _ in range(repeats)])
                assert not lease.lost.is_set()
            wall, processor = np.median(times, axis=0)
            print(f"  a lease's beat, {name}: {wall:.2f} ms wall, {processor:.2f} ms CPU")


def costs(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for tracker in ("none", "mlflow"):
            starts(folder, options.starts, tracker)
        checkpoints(folder, options.repeats)
        records(folder, options.repeats)
        beats(folder, 5 * options.repeats)


def steps(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(f"journal:{folder}/study.journal")
        study = optuna.create_study(storage=storage, sampler=RandomSampler(seed=0))
        worker = make_worker(study, make_plan(0))
        assert worker.lease is not None
        assert worker.lease.hold(study.ask())
        model, optimizer, controller = make_training("digits MLP", "momentum")
        task = SearchRequest(task=TASK).resolved()
        data = task.data(0).train
        keeper = Keeper(Checkpoint(Path(folder, "c.pt")), interrupted=worker._interrupted)
        keeper.begin(model, optimizer, controller)
        taken = 0

        def block(kept: bool) -> None:
            nonlocal taken
            for _ in range(options.block):
                taken += 1
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(data.inputs[:32]), data.targets[:32])
                loss.backward()
                optimizer.step()
                controller.step(loss)
                if kept:
                    keeper.stepped(taken)

        block(False), block(True)
        rows = []
        for number in range(10 * options.pairs):
            order = (False, True) if number % 2 else (True, False)
            times = {kept: timed(lambda kept=kept: block(kept)) for kept in order}
            rows.append([times[False], times[True]])
        worker.lease.release()
    seconds = np.array(rows)
    share = 100.0 * (seconds[:, 1] / seconds[:, 0] - 1.0)
    alone = timed(lambda: [keeper.stepped(taken) for _ in range(100_000)]) / 100_000
    print(f"  a step: {1e6 * np.median(seconds[:, 0, 0]) / options.block:.0f} us")
    for column, name in enumerate(("wall", "processor")):
        low, middle, high = np.quantile(share[:, column], [0.25, 0.5, 0.75])
        print(f"  a keeper adds, {name}: {middle:.2f} % ({low:.2f} % to {high:.2f} %)")
    print(f"  the keeper's call by itself: {1e6 * alone[1]:.2f} us CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--pairs", type=int, default=8, help="of blocks")
    parser.add_argument("--trials", type=int, default=100, help="a block; a quarter on databases")
    parser.add_argument("--studies", type=int, default=3, help="pairs of whole studies")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one trial of the grid")
    parser.add_argument("--factor", type=float, default=1e4, help="of the ladder's start")
    parser.add_argument("--starts", type=int, default=3, help="of processes")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--block", type=int, default=200, help="steps")
    parts = {"trials": trials, "grid": grid, "ladder": ladder, "costs": costs, "steps": steps}
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for part in options.parts:
        print(part, flush=True)
        parts[part](options)


if __name__ == "__main__":
    main()
