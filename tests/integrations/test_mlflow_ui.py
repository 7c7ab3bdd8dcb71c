"""The UI server: its command, its links, its refusals, and one real start and stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch.errors import InvalidArgumentError, LrsearchError
from lrsearch_integrations.mlflow_tracker import open_study_run
from lrsearch_integrations.mlflow_ui import free_port, serve, ui_command, ui_link


def test_links_open_the_pages_for_training_and_not_for_language_models() -> None:
    base = "http://127.0.0.1:5000"
    assert ui_link(base) == f"{base}/#/experiments?workflowType=machine_learning"
    assert ui_link(base, "7") == f"{base}/#/experiments/7/runs?workflowType=machine_learning"
    assert ui_link(base + "/", "7", "ab").startswith(f"{base}/#/experiments/7/runs/ab?workflowType")
    assert "viewStateShareKey=mine&" in ui_link(base, "7", view="mine")


def test_the_server_has_one_worker_and_listens_on_this_machine_only() -> None:
    command = ui_command("sqlite:////data/mlruns/mlflow.db", 5001)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--workers"] == "1"
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "5001"
    assert options["--backend-store-uri"] == "sqlite:////data/mlruns/mlflow.db"


def test_a_store_without_a_study_is_refused_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(LrsearchError, match="run lrsearch demo") as caught:
        serve(f"sqlite:///{tmp_path}/mlruns/mlflow.db", free_port())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_refused_at_once(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    store.touch()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InvalidArgumentError, match=rf"port {port} is taken.*--port"):
            serve(f"sqlite:///{store}", port)
    with pytest.raises(InvalidArgumentError, match="between 1 and 65535, got 70000"):
        serve(f"sqlite:///{store}", 70000)


def test_for_a_servers_address_only_the_link_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve("http://tracking.example:5000") == 0
    out = capsys.readouterr().out
    assert "http://tracking.example:5000/#/experiments?workflowType=machine_learning" in out


@pytest.mark.slow
def test_the_ui_serves_the_study_until_it_is_interrupted(
    store_uri: str,
) -> None:
    with open_study_run(experiment="digits", name="study", tracking_uri=store_uri):
        pass
    port = free_port()
    code = (
        "from lrsearch_integrations.mlflow_ui import serve\n"
        f"raise SystemExit(serve({store_uri!r}, {port}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        link = process.stdout.readline()
        assert f"http://127.0.0.1:{port}/#/experiments/" in link
        assert "viewStateShareKey=lrsearch-studies" in link
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
            assert b"MLflow" in page.read()
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=30)
        assert process.returncode == 0
        assert messages == ""
        with socket.socket() as caller:
            assert caller.connect_ex(("127.0.0.1", port)) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
        process.communicate()
