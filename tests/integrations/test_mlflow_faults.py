"""Real processes, servers and kills: one run per trial, every point once, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_store import experiment_id, open_client
from lrsearch_integrations.mlflow_ui import free_port, server
from lrsearch_integrations.spool import Spool

pytestmark = pytest.mark.slow

TRAINING = """if True:
    import os, sys, time
    from lrsearch_integrations.mlflow_tracker import open_study_run
    uri, steps, pause, end = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    uid = sys.argv[5]
    study = open_study_run(experiment="faults", name="study", tracking_uri=uri)
    for k in range(2):
        trial = study.child(f"trial-{k}", uid=f"{uid}-{k}")
        trial.log_params({"lr": 0.1})
        for step in range(steps):
            trial.log_metrics({"train/loss": 1.0 / (1 + step), "train/lr": 0.1}, step)
            if step % 100 == 0:
                trial.log_steps([1.0 / (1 + step)] * 100, step, 0.1)
                time.sleep(pause)
        if end == "kill" and k == 1:
            os.kill(os.getpid(), 9)
        if end == "terminate" and k == 1:
            os.kill(os.getpid(), 15)
            time.sleep(60)
        if end == "leave" and k == 1:
            sys.exit(0)
        trial.finish("pruned" if k == 0 else "complete")
    if end == "raise":
        raise RuntimeError("the user's own")
    study.finish("complete")
    print("trained", flush=True)
    """


def environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    path = os.pathsep.join(path for path in sys.path if path)
    return {**kept, "PYTHONPATH": path, "LRSEARCH_SPOOL": str(folder / "spool")}


def start(
    folder: Path,
    uri: str,
    *,
    steps: int = 500,
    pause: float = 0.0,
    end: str = "well",
    uid: str = "uid",
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRAINING, uri, str(steps), str(pause), end, uid],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def sync(folder: Path, uri: str) -> list[dict[str, Any]]:
    """``lrsearch sync`` in a process of its own."""
    code = "from lrsearch_integrations.mlflow_sync import sync_spool; import json, dataclasses;"
    code += f"print(json.dumps([dataclasses.asdict(r) for r in sync_spool(None, {uri!r})]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    return reports


def runs_of(store_uri: str) -> dict[str, Any]:
    """All runs by name; fails if a name occurs twice."""
    client = open_client(store_uri)
    found = client.search_runs([experiment_id(client, "faults", store_uri)])
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names)), names
    return {run.info.run_name: run for run in found}


def check_parity(store_uri: str, spool: Path) -> int:
    """Every metric in the spool is in the store, once; returns how many."""
    client, points = open_client(store_uri), 0
    runs = {run.data.tags["lrsearch.trial_uid"]: run for run in runs_of(store_uri).values()}
    for spooled in Spool(spool).runs():
        wanted: dict[str, list[tuple[int, int, float]]] = {}
        for kind, *content in spooled.records():
            if kind == "m":
                at, step, values = content
                for key, value in values.items():
                    wanted.setdefault(key, []).append((at, step, value))
        run_id = runs[spooled.header.uid].info.run_id
        for key, expected in wanted.items():
            history = client.get_metric_history(run_id, key)
            assert sorted((m.timestamp, m.step, m.value) for m in history) == sorted(expected)
            points += len(history)
    return points


def check_whole(store_uri: str, states: dict[str, str], *, steps: int = 500) -> None:
    """The runs are there once, with their statuses and all points of both trials."""
    client, runs = open_client(store_uri), runs_of(store_uri)
    assert {name: run.info.status for name, run in runs.items()} == states
    for name in ("trial-0", "trial-1"):
        run = runs[name]
        assert run.data.params == {"lr": "0.1"}
        assert run.data.tags["mlflow.parentRunId"] == runs["study"].info.run_id
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [(m.step, m.value) for m in history] == [
            (step, 1.0 / (1 + step)) for step in range(steps)
        ]


WELL = {"study": "FINISHED", "trial-0": "KILLED", "trial-1": "FINISHED"}
LOST = {"study": "FAILED", "trial-0": "KILLED", "trial-1": "FAILED"}


@pytest.mark.parametrize(
    ("end", "status", "states"),
    [
        ("well", 0, WELL),
        ("leave", 0, LOST),
        ("raise", 1, {**WELL, "study": "FAILED"}),
        ("terminate", -signal.SIGTERM, LOST),
    ],
)
def test_every_end_that_python_sees_leaves_the_whole_record_and_its_status(
    store_uri: str, tmp_path: Path, end: str, status: int, states: dict[str, str]
) -> None:
    code, _, err = end_of(start(tmp_path, store_uri, end=end))
    assert code == status, err
    check_whole(store_uri, states)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_killed_process_loses_nothing_and_its_runs_are_closed_by_sync(
    store_uri: str, tmp_path: Path
) -> None:
    code, _, _ = end_of(start(tmp_path, store_uri, end="kill"))
    assert code == -signal.SIGKILL
    shutil.copytree(tmp_path / "spool", tmp_path / "kept")
    (report,) = sync(tmp_path, store_uri)
    assert (report["left"], report["alive"]) == (0, 0)
    assert report["sent"] >= 2
    check_whole(store_uri, LOST)
    assert check_parity(store_uri, tmp_path / "kept") >= 1000
    tags = runs_of(store_uri)["trial-1"].data.tags
    assert tags["lrsearch.reason"] == "the process ended without a word"
    assert sync(tmp_path, store_uri) == []


def test_the_next_study_closes_what_a_killed_one_left(store_uri: str, tmp_path: Path) -> None:
    end_of(start(tmp_path, store_uri, end="kill"))
    code = f"""if True:
        import time
        from lrsearch_integrations.mlflow_tracker import open_study_run
        from lrsearch_integrations.spool import Spool
        with open_study_run(experiment="other", name="next", tracking_uri={store_uri!r}) as run:
            end = time.monotonic() + 60
            while len(list(run._sender.spool.runs())) > 1 and time.monotonic() < end:
                time.sleep(0.1)
        """
    subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), check=True, timeout=90)
    check_whole(store_uri, LOST)


def test_a_killed_sync_sends_nothing_twice(store_uri: str, tmp_path: Path) -> None:
    """The mark is lost between a request and its note: the piece goes again, the points do not."""
    end_of(start(tmp_path, store_uri, end="kill"))
    shutil.copytree(tmp_path / "spool", tmp_path / "kept")
    sync(tmp_path, store_uri)
    for folder in (tmp_path / "kept").iterdir():
        # As it is noted just before the store is asked for the run.
        (folder / "sent.json").write_text(json.dumps({"creating": True}))
    shutil.rmtree(tmp_path / "spool")
    shutil.copytree(tmp_path / "kept", tmp_path / "spool")
    sync(tmp_path, store_uri)
    check_whole(store_uri, LOST)
    check_parity(store_uri, tmp_path / "kept")


def test_a_server_that_refuses_is_no_reason_to_wait_or_stop(store_uri: str, tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    begin = time.monotonic()
    code, out, err = end_of(start(tmp_path, uri))
    assert (code, out) == (0, "trained\n")
    assert time.monotonic() - begin < 30
    assert "lrsearch sync sends it" in err
    shutil.copytree(tmp_path / "spool", tmp_path / "kept")
    assert [report["left"] for report in sync(tmp_path, uri)] == [3]  # still gone
    with server(store_uri, port):
        assert [(r["sent"], r["left"]) for r in sync(tmp_path, uri)] == [(3, 0)]
        assert sync(tmp_path, uri) == []
    check_whole(store_uri, WELL)
    assert check_parity(store_uri, tmp_path / "kept") == 2000


def test_a_server_that_hangs_holds_nobody_up_and_gets_everything_once(
    store_uri: str, tmp_path: Path
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with server(store_uri, port) as process:
        training = start(tmp_path, uri, steps=2000, pause=0.2)
        end = time.monotonic() + 60
        while not (tmp_path / "spool" / "uid-0" / "sent.json").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGSTOP)
        try:
            code, out, err = end_of(training)
        finally:
            os.killpg(process.pid, signal.SIGCONT)
        assert (code, out) == (0, "trained\n"), err
        shutil.copytree(tmp_path / "spool", tmp_path / "kept")
        reports = sync(tmp_path, uri)
        assert [report["left"] for report in reports] == [0]
    check_whole(store_uri, WELL, steps=2000)
    check_parity(store_uri, tmp_path / "kept")


@contextlib.contextmanager
def delaying_proxy(port: int, target: int, seconds: float) -> Iterator[None]:
    """Passes requests on at once, and holds every answer back."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(0.2)
    stop = threading.Event()
    opened = [listener]

    def pump(source: socket.socket, sink: socket.socket, delay: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                stop.wait(delay)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        while not stop.is_set():
            try:
                near, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", target))
            except OSError:
                return
            opened.extend((near, far))
            for source, sink, delay in ((near, far, 0.0), (far, near, seconds)):
                threading.Thread(target=pump, args=(source, sink, delay), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
        for each in opened:
            each.close()


def test_a_slow_proxy_makes_one_run_of_one_trial(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers come after the client has given up and asked again, three times in all."""
    port, slow = free_port(), free_port()
    uri = f"http://127.0.0.1:{slow}"
    with server(store_uri, port):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with delaying_proxy(slow, port, 2.5):
            code, out, err = end_of(start(tmp_path, uri, steps=300))
        assert (code, out) == (0, "trained\n"), err
        shutil.copytree(tmp_path / "spool", tmp_path / "kept")
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
        with delaying_proxy(slow, port, 0.0):
            assert [report["left"] for report in sync(tmp_path, uri)] == [0]
    check_whole(store_uri, WELL, steps=300)
    check_parity(store_uri, tmp_path / "kept")


def test_four_processes_meet_in_a_fresh_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    processes = []
    for k in range(4):
        (tmp_path / str(k)).mkdir()
        processes.append(start(tmp_path / str(k), uri, steps=200, uid=f"uid-{k}"))
    for process in processes:
        code, out, err = end_of(process)
        assert (code, out) == (0, "trained\n"), err
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([experiment_id(client, "faults", uri)])
    assert sorted(run.info.run_name for run in runs) == sorted(["study", "trial-0", "trial-1"] * 4)
    assert {run.info.status for run in runs} == {"FINISHED", "KILLED"}
