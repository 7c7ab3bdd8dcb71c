"""A PostgreSQL server for one test session, from the programs that Debian installs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
USER = "postgres"
DRIVER = "psycopg2"


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running server, without passwords, for this machine alone.

    Attributes:
        port: where it listens.
        programs: the folder of PostgreSQL's programs.
        start: run it (again), until it answers; raises RuntimeError if it does not.
        stop: end it at once, without waiting for its clients.
    """

    port: int
    programs: Path
    start: Callable[[], None]
    stop: Callable[[], None]

    def create_database(self, name: str) -> str:
        """Create an empty database; returns its address for SQLAlchemy (MLflow, Optuna)."""
        command = [self.programs / "createdb", "-h", HOST, "-p", str(self.port), "-U", USER, name]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return f"postgresql+{DRIVER}://{USER}@{HOST}:{self.port}/{name}"


def why_missing() -> str:
    """Say what a server needs and this machine lacks; "" if nothing."""
    if _programs() is None:
        return "PostgreSQL's server programs are not installed (Debian: postgresql)"
    if find_spec(DRIVER) is None:
        return f"{DRIVER} is not installed"
    if _is_root() and not _has_user():
        return f"PostgreSQL does not run as root, and there is no user {USER!r}"
    return ""


@contextlib.contextmanager
def serve() -> Iterator[PostgresServer]:
    """Run a server on a free port with a data folder of its own.

    Raises:
        RuntimeError: if it does not start; with the end of its log.
    """
    programs = _programs()
    assert programs is not None, why_missing()
    # Not below pytest's folders: those are closed to the user that the server runs as.
    with tempfile.TemporaryDirectory(prefix="lrsearch-pg-", ignore_cleanup_errors=True) as home:
        as_user: dict[str, Any] = {"cwd": home, "stdin": subprocess.DEVNULL}
        if _is_root():
            shutil.chown(home, USER)
            as_user |= {"user": USER, "group": USER, "extra_groups": []}
        data = Path(home, "data")
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "-N"],
            check=True,
            capture_output=True,
            timeout=120,
            **as_user,
        )
        with socket.socket() as listener:
            listener.bind((HOST, 0))
            port = int(listener.getsockname()[1])
        settings = {
            "listen_addresses": HOST,
            "port": str(port),
            "unix_socket_directories": "",
            "fsync": "off",  # what is lost with the machine's power is nobody's loss
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        processes: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                **as_user,
            )
            processes.append(process)
            if not _answers(process, port, programs):
                log.seek(0)
                said = log.read()[-500:].decode(errors="replace")
                raise RuntimeError(f"PostgreSQL did not start: {said}")

        def stop() -> None:
            while processes:
                process = processes.pop()
                process.send_signal(signal.SIGINT)  # without waiting for its clients
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

        with tempfile.TemporaryFile() as log:
            try:
                start()
                yield PostgresServer(port, programs, start, stop)
            finally:
                stop()


def _answers(process: subprocess.Popen[bytes], port: int, programs: Path) -> bool:
    ready = [programs / "pg_isready", "-q", "-h", HOST, "-p", str(port)]
    end = time.monotonic() + 60.0
    while subprocess.run(ready, timeout=30).returncode != 0:
        if process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _programs() -> Path | None:
    """The newest folder with both programs: Debian keeps them off the PATH."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name)
    )
    if shutil.which("pg_config"):
        told = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
        folders.append(Path(told.stdout.strip()))
    for folder in reversed(folders):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _has_user() -> bool:
    import pwd

    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True
