"""Real servers go away in the middle of a study and come back: nothing is lost, nothing doubled."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState
from postgres import serve, why_missing

from lrsearch.studies.storages import open_storage

TRIALS = 30
OUTAGE_SECONDS = 2.0


def assert_outage_costs_nothing(
    storage: BaseStorage,
    leave: Callable[[], None],
    come_back: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Run a study of two threads through an outage that begins at its sixth trial."""
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    sixth, returned = threading.Event(), threading.Event()

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        if trial.number == 5:
            sixth.set()
        trial.set_user_attr("x", x)
        trial.report(x, step=0)
        if not returned.is_set():
            time.sleep(0.02)
        return x

    def outage() -> None:
        sixth.wait(60.0)
        leave()
        time.sleep(OUTAGE_SECONDS)
        come_back()
        returned.set()

    other = threading.Thread(target=outage)
    other.start()
    try:
        study.optimize(objective, n_trials=TRIALS, n_jobs=2)
    finally:
        other.join(60.0)
    trials = study.trials
    done = [each for each in trials if each.state == TrialState.COMPLETE]
    # An answer that was lost may leave a trial that was created twice, and never begun.
    ghosts = [each for each in trials if each.state == TrialState.RUNNING]
    assert len(done) == TRIALS
    assert len(done) + len(ghosts) == len(trials)
    assert all(not each.params for each in ghosts)
    for each in done:
        x = each.params["x"]
        assert (each.value, each.user_attrs, each.intermediate_values) == (x, {"x": x}, {0: x})
    assert "storage is away" in caplog.text
    assert "storage is back" in caplog.text


def test_postgresql_restarts_in_the_middle_of_a_study(caplog: pytest.LogCaptureFixture) -> None:
    if reason := why_missing():
        pytest.skip(reason)
    with serve() as server:
        storage = open_storage(server.create_database("study"), patience=60.0)
        assert_outage_costs_nothing(storage, server.stop, server.start, caplog)
        storage.wrapped._backend.engine.dispose()  # type: ignore[attr-defined]


SERVER = """
import sys, warnings
warnings.simplefilter("ignore")
from optuna.storages import run_grpc_proxy_server
from lrsearch.studies.storages import open_storage
run_grpc_proxy_server(open_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


class ProxyServer:
    """A gRPC proxy in a process of its own, before a journal."""

    def __init__(self, journal: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self._command = [sys.executable, "-c", SERVER, f"journal:{journal}", str(self.port)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


@pytest.mark.parametrize("way", ["killed", "paused"])
def test_a_proxy_goes_away_in_the_middle_of_a_study(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc")
    monkeypatch.setattr("lrsearch.studies.grpc_proxy._DEADLINE_SECONDS", 1.0)
    server = ProxyServer(tmp_path / "j")
    try:
        storage = open_storage(f"grpc://127.0.0.1:{server.port}", patience=60.0)
        leave, come_back = (
            (server.kill, server.start) if way == "killed" else (server.pause, server.go_on)
        )
        assert_outage_costs_nothing(storage, leave, come_back, caplog)
        storage.wrapped.close()  # type: ignore[attr-defined]
    finally:
        server.kill()
