"""Whether the process that another one told about is still there."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """One process, so named that neither a reused pid nor another machine's is taken for it.

    Attributes:
        host: name of its machine, for people.
        machine: of one boot and one space of pids (a container has its own); "" if unknown.
        pid: its number there.
        born: when it started, in clock ticks since the boot; None if unknown.
    """

    host: str
    machine: str
    pid: int
    born: int | None


def this_process() -> Process:
    """The calling process."""
    pid = os.getpid()
    return Process(socket.gethostname()[:64], _this_machine(), pid, _born(pid))


def is_alive(process: Process) -> bool | None:
    """Whether ``process`` is there; None if that cannot be seen from here.

    It can be seen on the same machine since the same boot, among the same pids, where Linux's
    ``/proc`` tells when each process started. A process that ended counts as gone also while its
    parent has yet to take note of it.
    """
    if not process.machine or process.machine != _this_machine() or process.born is None:
        return None
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and another user's
    born = _born(process.pid)
    if born is None:  # /proc hides what is another user's
        return None
    return born == process.born


@cache
def _this_machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    # The name as well: some sandboxes answer the other two alike everywhere.
    return hashlib.sha256(f"{boot} {pids} {socket.gethostname()}".encode()).hexdigest()[:16]


def _born(pid: int) -> int | None:
    """Start of a process that runs, -1 of one that has ended, None if that is not to be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name, in parentheses, may hold anything; the state is the third field, the start the 22nd.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return -1 if fields[0] in (b"Z", b"X", b"x") else int(fields[19])
