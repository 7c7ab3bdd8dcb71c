"""Real processes are killed over their trials, and others finish them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from postgres import PostgresServer

from lrsearch.studies.attributes import LEASE
from lrsearch.studies.leases import Lease
from lrsearch.studies.reaper import Reaper, died_over
from lrsearch.studies.storages import open_storage

# Says what it holds, and trains when it is told to. "claim": claims the queue alone.
WORKER = """
import sys
import optuna
from optuna.samplers import RandomSampler
from lrsearch.studies.leases import Lease
from lrsearch.studies.storages import open_storage

url, name, task = sys.argv[1:]
study = optuna.load_study(study_name="s", storage=open_storage(url), sampler=RandomSampler())
lease = Lease(study, name)

def say(words):
    print(words, flush=True)
    sys.stdin.readline()

say("ready")
while task == "claim":
    trial_id = study._pop_waiting_trial_id()
    if trial_id is None:
        break
    trial = optuna.Trial(study, trial_id)
    if not lease.hold(trial):
        continue
    x = trial.suggest_float("x", 0.0, 1.0)
    if lease.still_mine():
        study.tell(trial, x)
        print(trial.number, flush=True)
if task == "train":
    trial = study.ask()
    assert lease.hold(trial)
    x = trial.suggest_float("x", 0.0, 1.0)
    say(f"{trial.number} {x!r}")
"""


@contextmanager
def workers(url: str, task: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, url, f"w{index}", task],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for index in range(count)
    ]
    try:
        for each in started:
            assert heard(each) == "ready"
        yield started
    finally:
        for each in started:
            each.kill()
            each.communicate()


def heard(worker: subprocess.Popen[str]) -> str:
    return pipe(worker.stdout).readline().strip()


def go_on(worker: subprocess.Popen[str]) -> None:
    pipe(worker.stdin).write("\n")
    pipe(worker.stdin).flush()


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@pytest.fixture(params=["journal", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "journal":
        return f"journal:{tmp_path / 'j'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.create_database("killed_workers")


def test_the_trial_of_a_killed_worker_is_finished_by_another(url: str) -> None:
    storage = open_storage(url)
    study = optuna.create_study(study_name="s", storage=storage, sampler=RandomSampler(seed=0))
    watcher = Reaper(study)
    with workers(url, "train", 2) as (victim, survivor):
        go_on(victim)
        number, x = heard(victim).split()
        go_on(survivor)
        other, _ = heard(survivor).split()
        assert watcher.reap() == []
        os.kill(victim.pid, signal.SIGKILL)
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        assert [each.number for each in watcher.reap()] == [int(number)]
        assert study.trials[int(other)].state == TrialState.RUNNING
        with Lease(study, "heir") as lease:
            trial = study.ask()
            assert trial.number == int(number)
            assert lease.hold(trial)
            assert trial.suggest_float("x", 0.0, 1.0) == float(x)
            assert lease.still_mine()
            study.tell(trial, 1.0)
    assert [each.number for each in watcher.reap()] == [int(other)]  # it was killed just now
    states = {each.number: each.state for each in study.trials}
    assert states == {int(number): TrialState.COMPLETE, int(other): TrialState.WAITING}
    assert [died_over(each) for each in study.trials] == [1, 1]
    if url.startswith("postgresql"):
        storage.wrapped._backend.engine.dispose()  # type: ignore[attr-defined]


def test_processes_run_each_queued_trial_once(tmp_path: Path) -> None:
    url = f"journal:{tmp_path / 'j'}"
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    for trial_id in [study.ask()._trial_id for _ in range(40)]:
        study._storage.set_trial_user_attr(trial_id, LEASE, None)
        study._storage.set_trial_state_values(trial_id, TrialState.WAITING)
    with workers(url, "claim", 4) as started:
        for each in started:
            go_on(each)
        ran = [[int(line) for line in pipe(each.stdout)] for each in started]
        assert [each.wait(60) for each in started] == [0] * 4
    assert sorted(number for each in ran for number in each) == list(range(40))
    assert all(each.state == TrialState.COMPLETE for each in study.trials)
    assert len(study.trials) == 40
