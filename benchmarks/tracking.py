"""Cost of recording a run in MLflow: seconds that 100,000 steps take longer, and memory.

Paired: blocks of steps with and without recording in turn, in one process, on one training that
goes on; what is left to send at a block's end is waited for and counted. A block that is recorded
writes what a run of 100,000 steps writes there: every step's loss to the table, every hundredth to
the chart, and envelope and ExpTest statistics every 250 steps. Where the machine is busy, the
record's own processor time tells more than the difference of two wall times. For comparison the
same steps with one ``log_metric`` per step (extrapolated from a few hundred), with ``log_batch`` of
every step's loss, and what Optuna's callback takes per trial, if optuna-integration is installed.

Run: OMP_NUM_THREADS=1 python benchmarks/tracking.py [sqlite] [http] [memory]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from torch import nn

from lrsearch.training.curve import CurveLog
from lrsearch.windows import WindowStats
from lrsearch_integrations.mlflow_api import Metric, MlflowClient
from lrsearch_integrations.mlflow_store import prepare_store
from lrsearch_integrations.mlflow_tracker import MlflowRun, open_study_run
from lrsearch_integrations.mlflow_ui import HOST, free_port, server

STEPS = 100_000
WINDOW = 250
BATCH = 1000
LR = 0.01


class Training:
    """An MLP on random data; each step waits for its loss, as most loops do."""

    def __init__(self, widths: list[int], batch: int) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self._model = nn.Sequential(*layers[:-1])
        self._inputs = torch.randn(4096, widths[0])
        self._targets = torch.randint(0, widths[-1], (4096,))
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=LR)
        self._batch, self._at = batch, 0

    def step(self) -> float:
        """Return the loss."""
        rows = slice(self._at, self._at + self._batch)
        self._at = (self._at + self._batch) % (4096 - self._batch)
        self._optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self._model(self._inputs[rows]), self._targets[rows])
        loss.backward()
        self._optimizer.step()
        return loss.item()


class Recording:
    """What ExpTest tells a tracker, without ExpTest: its own cost is not in question here."""

    def __init__(self, run: MlflowRun) -> None:
        self._run, self._curve = run, CurveLog(run, STEPS)
        self._losses: list[float] = []
        self.steps = 0
        self.seconds = 0.0  # processor seconds of the training's thread

    def add(self, loss: float) -> None:
        """Take note of a step."""
        self._losses.append(loss)
        self.steps += 1
        if len(self._losses) == WINDOW:
            began, start = time.thread_time(), self.steps - WINDOW
            self._curve.extend(np.array(self._losses), start, LR)
            self._run.log_metrics(window(start).as_metrics(), step=self.steps - 1)
            self._losses.clear()
            self.seconds += time.thread_time() - began


def window(start: int) -> WindowStats:
    return WindowStats(
        index=start // WINDOW,
        phase="searching",
        start=start,
        stop=start + WINDOW,
        length=WINDOW,
        correction=2.5,
        lr=LR,
        n_effective=120.0,
        f_statistic=3.0 + start,
        sse_linear=0.4,
        sse_exponential=0.3,
        slope=-1e-4,
        t_statistic=-2.5,
        pvalue=0.01,
        loss_first=1.0,
        loss_last=0.5,
        loss_mean=0.7,
        decision="continue",
        reason="",
    )


def timed(work: Callable[[], object]) -> np.ndarray:
    """Wall seconds, processor seconds of all threads, and of all but this one (the sender's)."""
    clocks = (time.perf_counter, time.process_time, time.thread_time)
    began = [clock() for clock in clocks]
    work()
    wall, processor, own = (clock() - start for clock, start in zip(clocks, began, strict=True))
    return np.array([wall, processor, processor - own])


def interval(values: np.ndarray) -> str:
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.2f} [{values.mean() - half:.2f}, {values.mean() + half:.2f}]"


def paired(uri: str, training: Training, pairs: int, block: int) -> None:
    run = open_study_run(experiment="benchmark", name="paired", tracking_uri=uri)
    recording = Recording(run)

    def bare() -> None:
        for _ in range(block):
            training.step()

    def recorded() -> None:
        for _ in range(block):
            recording.add(training.step())

    timed(bare), timed(recorded), run.flush()
    rows, recording.seconds = [], 0.0
    for number in range(pairs):
        order = (bare, recorded) if number % 2 else (recorded, bare)
        times = {}
        for work in order:
            times[work] = timed(work)
            if work is recorded:
                drained = timed(run.flush)
        rows.append([times[bare], times[recorded], drained])
    run.finish("complete")
    bare_s, recorded_s, drained_s = np.moveaxis(np.array(rows), 1, 0)
    scale = STEPS / block
    added = (recorded_s + drained_s - bare_s) * scale
    share = 100.0 * ((recorded_s + drained_s) / bare_s - 1.0)
    print(f"  a step without recording: {1e3 * np.median(bare_s[:, 0]) / block:.3f} ms (median)")
    for column, name in enumerate(("wall", "processor")):
        quartiles = np.quantile(share[:, column], [0.25, 0.5, 0.75])
        print(
            f"  added {name} s per {STEPS} steps, mean [95 %]: {interval(added[:, column])}; "
            f"share, median (quartiles): {quartiles[1]:.2f} % "
            f"({quartiles[0]:.2f} to {quartiles[2]:.2f})"
        )
    sender = (recorded_s + drained_s)[:, 2].mean() * scale
    calls = recording.seconds / pairs * scale
    percent = 100.0 * (calls + sender) / (bare_s[:, 1].mean() * scale)
    print(
        f"  the record's own processor s per {STEPS} steps: {calls:.2f} in calls, {sender:.2f} in "
        f"the sender's thread; {percent:.2f} % of the training's"
    )
    waited = drained_s[:, 0] * scale
    print(f"  of it waiting at the ends of blocks, wall s, mean [95 %]: {interval(waited)}")


def alone(uri: str) -> None:
    """The same without any training: all that the process has to do for the record."""
    losses = np.exp(-np.arange(STEPS) / 30_000.0).tolist()
    runs: list[MlflowRun] = []
    opened = timed(
        lambda: runs.append(open_study_run(experiment="benchmark", name="alone", tracking_uri=uri))
    )
    recording = Recording(runs[0])
    logged = timed(lambda: [recording.add(loss) for loss in losses])
    closed = timed(lambda: runs[0].finish("complete"))
    for name, (wall, processor, _) in (("open", opened), ("log", logged), ("close", closed)):
        print(f"  {STEPS} steps without training, {name}: {wall:.2f} s wall, {processor:.2f} s CPU")


def others(uri: str, calls: int) -> None:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("benchmark")
    assert found is not None
    run_id = client.create_run(found.experiment_id).info.run_id

    def one_by_one() -> None:
        for step in range(calls):
            client.log_metric(run_id, "train/loss", 1.0, step=step)

    def in_batches() -> None:
        for start in range(0, 10 * BATCH, BATCH):
            now = int(time.time() * 1000)
            metrics = [Metric("every", 1.0, now, step) for step in range(start, start + BATCH)]
            client.log_batch(run_id, metrics=metrics)

    for name, work, done in (
        (f"log_metric per step, from {calls} calls", one_by_one, calls),
        (f"log_batch of {BATCH} steps, from 10 calls", in_batches, 10 * BATCH),
    ):
        wall, processor, _ = timed(work) * STEPS / done
        print(f"  {name}: {wall:.1f} s wall, {processor:.1f} s CPU per {STEPS} steps")
    callback(uri)


def callback(uri: str) -> None:
    try:
        import mlflow
        import optuna
        from optuna_integration.mlflow import MLflowCallback
    except ImportError:
        print("  Optuna's MLflowCallback: optuna-integration is not installed")
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        log = MLflowCallback(tracking_uri=uri, metric_name="val/loss")

    def study(callbacks: list[object]) -> None:
        optuna.create_study().optimize(
            lambda trial: trial.suggest_float("lr", 0.0, 1.0),
            n_trials=5,
            callbacks=callbacks,  # type: ignore[arg-type]  # optuna has no name for its kind
        )

    study([log])
    wall, processor, _ = (timed(lambda: study([log])) - timed(lambda: study([]))) / 5
    mlflow.set_tracking_uri("")
    print(
        f"  Optuna's MLflowCallback: {wall:.2f} s wall, {processor:.2f} s CPU per trial, no curve"
    )


def memory(metrics: int) -> None:
    """A million values while the store is down: they wait on disk."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        uri = f"http://{HOST}:{free_port()}"
        run = open_study_run(experiment="benchmark", name="down", tracking_uri=uri)
        values = {f"metric/{number}": float(number) for number in range(10)}
        before = peak = resident()

        def log() -> None:
            nonlocal peak
            for step in range(metrics // len(values)):
                run.log_metrics(values, step)
                if step % 100 == 0:
                    peak = max(peak, resident())

        wall, processor, _ = timed(log)
        closing, *_ = timed(lambda: run.finish("complete"))
        spooled = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        calls, grown = metrics // len(values), (peak - before) / 2**20
        print(
            f"  {metrics} values in {calls} calls: memory +{grown:.1f} MiB at most, "
            f"{spooled / 2**20:.0f} MiB on disk, {1e6 * wall / calls:.0f} us wall and "
            f"{1e6 * processor / calls:.0f} us CPU per call; closing {closing:.2f} s"
        )


def resident() -> int:
    """Bytes in memory now: the highest so far, which is easier had, is that of the imports."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def store(kind: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        uri = f"sqlite:///{folder}/mlruns/mlflow.db"
        prepare_store(uri)
        if kind == "sqlite":
            yield uri
            return
        port = free_port()
        with server(uri, port):
            yield f"http://{HOST}:{port}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["sqlite", "http", "memory"])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--block", type=int, default=10_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[784, 128, 64, 10])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--values", type=int, default=1_000_000)
    options = parser.parse_args()
    if len(options.parts) > 1:  # a process for each, so that none inherits another's threads
        shared = [argument for argument in sys.argv[1:] if argument not in options.parts]
        for part in options.parts:
            subprocess.run([sys.executable, __file__, part, *shared], check=True)
        return
    (part,) = options.parts
    print(part, flush=True)
    if part == "memory":
        memory(options.values)
        return
    with store(part) as uri:
        alone(uri)
        others(uri, options.calls)
        paired(uri, Training(options.widths, options.batch), options.pairs, options.block)


if __name__ == "__main__":
    main()
