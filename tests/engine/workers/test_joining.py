"""The command line with several processes: Ctrl-C, resume, and workers that join."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from lrsearch import search
from lrsearch.engine import join
from lrsearch.errors import InvalidArgumentError
from lrsearch.studies.attributes import ACCEPTED
from lrsearch.studies.storages import open_storage

pytestmark = pytest.mark.slow

# As the command line, with a start that is far too high.
CLI = """if True:
    import sys
    from dataclasses import replace
    from lrsearch.cli.main import main
    from lrsearch.engine import start
    true_bound = start.rate_bound
    def scaled(*arguments):
        bound = true_bound(*arguments)
        return replace(bound, lr_max=30.0 * bound.lr_max)
    start.rate_bound = scaled
    if __name__ == "__main__":
        sys.exit(main(sys.argv[1:]))
    """


@pytest.fixture
def lrsearch(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    script = tmp_path / "cli.py"
    script.write_text(CLI)
    path = os.pathsep.join(path for path in sys.path if path)

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture
def whole(scale_bound: Callable[[float], None]) -> Any:
    """What an uninterrupted search finds."""
    scale_bound(30.0)
    return search("worker_tasks:line", start="bound", tracker="none")


def check(out: str, whole: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out)
    assert (found["lr"], found["value"]) == (whole.lr, whole.value)
    assert {trial["state"] for trial in found["trials"]} <= {"COMPLETE", "PRUNED"}
    for number in range(len(whole.trials)):
        windows = [row for row in found["windows"] if row["trial"] == number]
        assert [row["stop"] for row in windows] == list(
            whole.windows["stop"][whole.windows["trial"] == number]
        )
    return found


def trials_of(storage: str) -> list[Any]:
    try:
        study = optuna.load_study(study_name="s", storage=open_storage(storage))
    except KeyError:
        return []
    return study.trials


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("workers", "number"), [("1", signal.SIGINT), ("2", signal.SIGINT), ("2", signal.SIGTERM)]
)
def test_ctrl_c_and_sigterm_end_cleanly_and_resume_goes_on(
    lrsearch: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    whole: Any,
    workers: str,
    number: signal.Signals,
) -> None:
    storage = f"journal:{tmp_path / 'study.journal'}"
    asked = ["search", "worker_tasks:slow_line", "--storage", storage, "--study-name", "s"]
    asked += ["--workers", workers, "--start", "bound", "--no-tracking", "--json", "-"]
    first = lrsearch(*asked)
    # In the middle of the training that is to be the answer.
    wait_for(lambda: any(ACCEPTED in trial.user_attrs for trial in trials_of(storage)), first)
    if number == signal.SIGINT:
        os.killpg(first.pid, number)  # as a terminal does: every process gets it
    else:
        first.send_signal(number)  # as a scheduler does
    out, err = first.communicate(timeout=60)
    assert first.returncode == 1, err
    assert out == ""
    assert f"interrupted: go on with --resume --study-name s --storage {storage}" in err
    assert "Traceback" not in err
    before = trials_of(storage)
    assert "RUNNING" not in {trial.state.name for trial in before}
    assert "WAITING" in {trial.state.name for trial in before}
    out, err = lrsearch(*asked, "--resume").communicate(timeout=120)
    found = check(out, whole)
    assert len(found["trials"]) >= len(before)


def test_a_worker_that_joins_shares_the_study(
    lrsearch: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    storage = f"journal:{tmp_path / 'study.journal'}"
    named = ["--storage", storage, "--study-name", "s"]
    asked = ["worker_tasks:slow_line", "--method", "grid", "--epochs", "15", "--no-tracking"]
    searching = lrsearch("search", *asked, *named, "--json", "-")
    wait_for(lambda: bool(trials_of(storage)), searching)
    joined = lrsearch("worker", *named)
    out, err = searching.communicate(timeout=120)
    assert searching.returncode == 0, err
    trials = json.loads(out)["trials"]
    assert len(trials) == 9
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}  # some diverge
    out, err = joined.communicate(timeout=60)
    assert joined.returncode == 0, err
    said = re.fullmatch(r"The study s is over; (\d) of its trials ended here\.\n", out)
    assert said
    assert 1 <= int(said[1]) <= 8


@pytest.mark.parametrize(
    ("storage", "name", "words"),
    [
        ("journal:{}/none.journal", "s", "study_name 's' is not in"),
        ("journal:{}/plain.journal", "plain", "is no search of lrsearch's"),
        ("sqlite:///{}/study.db", "s", "SQLite lets two workers"),
    ],
)
def test_what_cannot_be_joined_is_said_in_a_line(
    tmp_path: Path, storage: str, name: str, words: str
) -> None:
    optuna.create_study(
        study_name="plain", storage=open_storage(f"journal:{tmp_path}/plain.journal")
    )
    with pytest.raises(InvalidArgumentError, match=words) as told:
        join(name, storage.format(tmp_path))
    assert "\n" not in str(told.value)
