"""A journal file outlives workers that are killed while they hold its lock or write a line."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from lrsearch.errors import InvalidArgumentError
from lrsearch.studies.journal import JournalFile, SharedJournal


def journal(path: Path) -> SharedJournal:
    return SharedJournal(JournalFile(str(path)))


def study_of(path: Path) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=journal(path), load_if_exists=True)


@pytest.mark.parametrize("left", [1, 12, 30, -1])
def test_a_torn_line_costs_the_operation_that_it_began_and_no_other(
    left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    witness = study_of(path)
    for _ in range(3):
        witness.tell(witness.ask(), 1.0)
    whole = path.read_bytes()
    witness.tell(witness.ask(), 2.0)
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[-1][:left]
    path.write_bytes(b"".join(lines[:-1]) + torn)  # a kill within the line that told trial 3

    fresh = study_of(path)
    assert [each.state for each in fresh.trials] == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]
    fresh.tell(fresh.ask(), 4.0)
    fresh.tell(3, 3.0)
    assert [each.value for each in study_of(path).trials] == [1.0, 1.0, 1.0, 3.0, 4.0]
    assert path.read_bytes().startswith(whole)
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert [f"cut off {len(torn)} bytes" in each.getMessage() for each in warnings] == [True]
    # Optuna's own reader finds nothing amiss.
    plain = JournalStorage(JournalFileBackend(str(path)))
    assert len(plain.get_all_trials(0)) == 5


def test_a_worker_that_was_there_before_the_tear_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    worker, other = study_of(path), study_of(path)
    worker.tell(worker.ask(), 1.0)
    assert len(other.trials) == 1
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert len(other.trials) == 1
    worker.tell(worker.ask(), 2.0)
    other.tell(other.ask(), 3.0)
    assert [each.value for each in other.trials] == [1.0, 2.0, 3.0]
    assert [each.value for each in worker.trials] == [1.0, 2.0, 3.0]


def test_a_line_that_was_glued_to_a_torn_one_is_skipped_by_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    study = study_of(path)
    study.tell(study.ask(), 1.0)
    with path.open("ab") as file:  # as Optuna's own backend leaves it
        file.write(b'{"op_code":4,"work{"op_code":4}\n')
    study.tell(study.ask(), 2.0)
    assert [each.value for each in study.trials] == [1.0, 2.0]
    assert [each.value for each in study_of(path).trials] == [1.0, 2.0]
    assert "skipped a damaged line" in caplog.text


def test_a_line_that_was_read_during_a_repair_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(tmp_path / "j")
    for value in (1.0, 2.0):
        study.tell(study.ask(), value)
    file = JournalFile(str(tmp_path / "j"))
    read = file._whole_lines
    mixed = [b'{"op_code":4,"work{"op_code":4}\n', b'{"op_code":4}\n']
    monkeypatch.setattr(
        file,
        "_whole_lines",
        lambda offset: read(offset)[:2] + mixed if offset == 0 else read(offset),
    )
    assert len(SharedJournal(file).get_all_trials(0)) == 2
    assert "damaged" not in caplog.text


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\x80\x02 no newline")
    with pytest.raises(InvalidArgumentError, match="is no Optuna journal"):
        JournalFile(str(path))
    assert path.read_bytes() == b"\x80\x02 no newline"


def test_a_journal_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    study = study_of(path)
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        study.ask()
    with pytest.raises(FileNotFoundError):
        _ = study.trials
    assert not path.exists()
    (tmp_path / "elsewhere").rename(path)
    assert study.ask().number == 0


def test_a_shrunken_journal_is_not_read_past_its_end(tmp_path: Path) -> None:
    path = tmp_path / "j"
    study = study_of(path)
    study.ask()
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with pytest.raises(OSError, match="has shrunk"):
        _ = study.trials
    path.write_bytes(whole)
    assert len(study.trials) == 1


HOLDER = """
import sys
from lrsearch.studies.journal import JournalFile
journal = JournalFile(sys.argv[1])
journal._lock.acquire()
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_killed_holder_of_the_lock_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "j"
    study = study_of(path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    asked = threading.Thread(target=study.ask, daemon=True)
    asked.start()
    asked.join(0.2)
    assert asked.is_alive()  # the lock is a lock
    os.kill(holder.pid, signal.SIGKILL)
    asked.join(10.0)  # Optuna's own lock is broken after 30 s
    assert not asked.is_alive()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()


def test_a_pickled_journal_reads_all_of_it(tmp_path: Path) -> None:
    storage = journal(tmp_path / "j")
    study = optuna.create_study(storage=storage)
    study.ask()
    assert len(pickle.loads(pickle.dumps(storage)).get_all_trials(0)) == 1


def test_who_lost_a_trial_does_not_win_it_again_by_memory(tmp_path: Path) -> None:
    # Both see it WAITING; the other writes first. By Optuna's own rule the first owner wins, too:
    # the trial is the last that it ever owned.
    path = tmp_path / "j"
    owner, other = journal(path), journal(path)
    study = optuna.create_study(storage=owner)
    number = study.ask()._trial_id
    owner.set_trial_state_values(number, TrialState.WAITING)
    append = owner._backend.append_logs
    others: list[bool] = []

    def overtaken(logs: list[dict[str, object]]) -> None:
        others.append(other.set_trial_state_values(number, TrialState.RUNNING))
        append(logs)

    owner._backend.append_logs = overtaken  # type: ignore[method-assign]
    assert not owner.set_trial_state_values(number, TrialState.RUNNING)
    assert others == [True]
