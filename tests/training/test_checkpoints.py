"""Checkpoints: round trips, damage, kills between any two writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lrsearch.errors import CheckpointError
from lrsearch.training.checkpoints import Checkpoint

STATE = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3)},
    "epochs": [{"lr": 0.1, "k_z": None, "note": "µ"}],
    "steps": 3,
}


def assert_same(found):
    assert found is not None
    torch.testing.assert_close(found["model"]["weight"], STATE["model"]["weight"], rtol=0, atol=0)
    assert {**found, "model": 0} == {**STATE, "model": 0}


def test_nothing_is_there_at_first(tmp_path):
    checkpoint = Checkpoint(tmp_path / "a" / "b.pt")
    assert checkpoint.load() is None
    checkpoint.discard()
    assert not (tmp_path / "a").exists()


def test_a_state_comes_back_in_a_folder_that_is_made(tmp_path):
    Checkpoint(tmp_path / "a" / "b.pt").save(STATE)
    assert_same(Checkpoint(tmp_path / "a" / "b.pt").load())


def test_the_last_state_counts_and_the_one_before_it_is_kept(tmp_path):
    checkpoint = Checkpoint(tmp_path / "b.pt")
    for step in range(4):
        checkpoint.save({"step": step})
    assert checkpoint.load() == {"step": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.pt", "b.pt.previous"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = [cut, empty, flip, Path.unlink]


def warnings_of(caplog):
    found = [record.getMessage() for record in caplog.records if record.name == "lrsearch"]
    caplog.clear()
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_from_a_damaged_state_the_one_before_it_is_taken(tmp_path, damage, caplog):
    checkpoint = Checkpoint(tmp_path / "b.pt")
    checkpoint.save({"step": 1})
    checkpoint.save({"step": 2})
    damage(tmp_path / "b.pt")
    assert checkpoint.load() == {"step": 1}
    if damage is not Path.unlink:  # that is a kill between two names, and no damage
        path = str(tmp_path / "b.pt")
        assert warnings_of(caplog) == [f"checkpoint {path!r} is damaged: took the one before it"]
    # The damaged one must not take the place of the sound one before it.
    checkpoint.save({"step": 2})
    damage(tmp_path / "b.pt")
    assert checkpoint.load() == {"step": 1}


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_both_damaged_there_is_none(tmp_path, damage, caplog):
    checkpoint = Checkpoint(tmp_path / "b.pt")
    checkpoint.save({"step": 1})
    checkpoint.save({"step": 2})
    damage(tmp_path / "b.pt")
    damage(tmp_path / "b.pt.previous")
    assert checkpoint.load() is None
    if damage is not Path.unlink:
        both = [str(tmp_path / name) for name in ("b.pt", "b.pt.previous")]
        assert warnings_of(caplog) == [
            f"checkpoint {both[0]!r} is damaged, and {both[1]!r} is damaged: starting over"
        ]
    checkpoint.save({"step": 3})
    assert checkpoint.load() == {"step": 3}


@pytest.mark.parametrize("moment", ["fsync", "replace 1", "replace 2"])
def test_a_kill_at_any_moment_of_a_save_leaves_a_state(tmp_path, monkeypatch, moment):
    checkpoint = Checkpoint(tmp_path / "b.pt")
    checkpoint.save({"step": 1})
    checkpoint.save({"step": 2})
    replace, calls = Path.replace, []

    def killed(*_):
        raise KeyboardInterrupt

    def replacing(path, target):
        calls.append(target)
        return killed() if f"replace {len(calls)}" == moment else replace(path, target)

    monkeypatch.setattr(Path, "replace", replacing)
    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({"step": 3})
    monkeypatch.undo()
    assert checkpoint.load() == {"step": 2}
    checkpoint.save({"step": 4})
    assert checkpoint.load() == {"step": 4}
    checkpoint.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_is_discarded_is_gone(tmp_path):
    checkpoint = Checkpoint(tmp_path / "b.pt")
    checkpoint.save({"step": 1})
    checkpoint.save({"step": 2})
    checkpoint.discard()
    assert list(tmp_path.iterdir()) == []
    assert checkpoint.load() is None


def test_code_is_never_loaded(tmp_path):
    """Only tensors and plain values: a file from elsewhere cannot run anything."""
    checkpoint = Checkpoint(tmp_path / "b.pt")
    checkpoint.save({"path": tmp_path})
    with pytest.raises(Exception, match="weights_only"):
        checkpoint.load()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*b\.pt"):
        Checkpoint(tmp_path / "file" / "b.pt").save(STATE)


def test_a_full_disk_leaves_the_state_before_it(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "b.pt")
    checkpoint.save({"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save({"step": 2})
    assert checkpoint.load() == {"step": 1}
    assert not list(tmp_path.glob("*.tmp"))


def test_the_names_are_on_disk_too_before_a_save_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync

    def syncing(number):
        synced.append((os.fstat(number).st_ino, (tmp_path / "b.pt").exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", syncing)
    Checkpoint(tmp_path / "b.pt").save(STATE)
    content = (tmp_path / "b.pt").stat().st_ino
    assert synced == [(content, False), (tmp_path.stat().st_ino, True)]


def test_a_file_that_may_not_be_read_is_left_there_and_said(tmp_path, monkeypatch, caplog):
    checkpoint = Checkpoint(tmp_path / "b.pt")
    checkpoint.save({"step": 1})

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert checkpoint.load() is None
    monkeypatch.undo()
    assert "cannot be read (Permission denied)" in warnings_of(caplog)[0]
    assert checkpoint.load() == {"step": 1}
