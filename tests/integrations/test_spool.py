"""The spool: what was written is read back, whole, by whoever comes later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch_integrations.spool import REOPENED, Header, Mark, Spool, SpooledRun, SpoolError

HEADER = Header(
    uid="trial 1/é",
    tracking_uri="http://server",
    experiment="digits",
    name="trial-1",
    tags={"a": "b"},
    start_time=12,
)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def test_a_run_is_found_again_with_all_its_records(spool: Spool) -> None:
    run = spool.begin(HEADER)
    run.write("m", 5, 0, {"train/loss": 0.1 + 0.2})
    run.write("t", {"text": "zwei\nZeilen ☃"})
    run.release()
    (found,) = spool.runs()
    assert found.header == HEADER
    assert list(found.records()) == [
        ["m", 5, 0, {"train/loss": 0.1 + 0.2}],
        ["t", {"text": "zwei\nZeilen ☃"}],
    ]
    assert spool.find(HEADER.uid) is not None
    assert spool.find("another") is None


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.dictionaries(st.text(max_size=8), finite, min_size=1), max_size=30),
    most=st.integers(1, 40),
)
def test_pieces_hold_each_record_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, float]], most: int
) -> None:
    run = Spool(tmp_path_factory.mktemp("spool")).begin(HEADER)
    ends = [run.write("m", 1, step, each) for step, each in enumerate(values)]
    read: list[Any] = []
    offset = 0
    while (piece := run.read(offset, most=most)).end > offset if values else False:
        read += piece.records
        offset = piece.end
        count = sum(len(record[3]) for record in piece.records[:-1])
        assert count < most  # it stops as soon as there are enough
    assert read == [["m", 1, step, each] for step, each in enumerate(values)]
    assert offset == (ends[-1] if ends else 0) == run.size
    run.remove()


def test_a_line_that_a_kill_has_torn_is_passed_over(spool: Spool) -> None:
    run = spool.begin(HEADER)
    run.write("t", {"a": "1"})
    whole = run.size
    run.release()
    records = run.folder / "records.jsonl"
    records.write_bytes(records.read_bytes() + b'["t",{"b":')
    assert run.read(0, most=10).end == whole  # not before it ends
    again = spool.begin(HEADER)
    again.write("t", {"c": "3"})
    piece = again.read(0, most=10)
    assert piece.records == [["t", {"a": "1"}], [REOPENED], ["t", {"c": "3"}]]
    assert (piece.damaged, piece.end) == (1, again.size)


def test_the_mark_survives_and_a_damaged_one_begins_anew(spool: Spool) -> None:
    run = spool.begin(replace(HEADER, run_id="given"))
    assert run.mark == Mark(run_id="given")
    mark = Mark("id", "7", offset=99, creating=True, closed=True)
    run.set_mark(mark)
    assert SpooledRun(run.folder).mark == mark
    (run.folder / "sent.json").write_text('{"run_id": ')
    assert run.mark == Mark(run_id="given")


def test_a_run_that_goes_on_is_open_again(spool: Spool) -> None:
    run = spool.begin(HEADER)
    run.write("t", {"a": "1"})
    run.set_mark(Mark("id", "7", offset=run.size, creating=True, closed=True))
    run.release()
    again = spool.begin(replace(HEADER, name="later", start_time=99))
    assert again.header == HEADER  # whoever was first says who it is
    assert not again.mark.closed
    assert again.mark.run_id == "id"


def test_one_process_writes_at_a_time_and_a_dead_one_holds_nothing(spool: Spool) -> None:
    code = f"""if True:
        from pathlib import Path
        from lrsearch_integrations.spool import Header, Spool
        header = Header("u", "", "", "", dict(), 0)
        run = Spool(Path({str(spool.folder)!r})).begin(header)
        run.write("t", dict(a="1"))
        print("held", flush=True)
        input()
        """
    path = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        (run,) = spool.runs()
        assert not run.acquire()
        with pytest.raises(SpoolError, match="written by another process"):
            spool.begin(replace(HEADER, uid="u"))
        process.kill()
    assert run.acquire()
    assert list(run.records()) == [["t", {"a": "1"}]]


class Killed(BaseException):
    """The process is dead."""


@pytest.mark.parametrize("left", range(6))
def test_a_kill_while_a_run_is_deleted_leaves_no_half_of_it(
    spool: Spool, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = spool.begin(HEADER)
    run.write("t", {"a": "1"})
    run.add_file(b"content")
    run.set_mark(Mark("id", "7", offset=run.size, creating=True, closed=True))
    deleted = 0

    def mortal(name: str) -> None:
        true = getattr(os, name)

        def deleting(*arguments: Any, **named: Any) -> None:
            nonlocal deleted
            if deleted == left:
                raise Killed
            deleted += 1
            true(*arguments, **named)

        monkeypatch.setattr(os, name, deleting)

    mortal("unlink")
    mortal("rmdir")
    with pytest.raises(Killed):
        run.remove()
    monkeypatch.undo()
    run.release()
    # Whoever takes half a run for one whose end is missing would close it as failed.
    found = list(spool.runs())
    if left == 0:
        assert [each.mark.closed for each in found] == [True]
        return
    assert found == []
    again = spool.begin(replace(HEADER, name="later"))
    assert (again.header.name, again.size, again.mark) == ("later", 0, Mark())
    again.remove()
    assert not run.folder.exists()


def test_whoever_waits_for_a_run_that_is_deleted_keeps_its_own(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = spool.begin(HEADER)
    run.write("t", {"a": "1"})
    true, others = SpooledRun.release, []

    def released(self: SpooledRun) -> None:
        true(self)
        if not others:  # the first moment at which another process may have it
            others.append(spool.begin(replace(HEADER, name="later")))
            others[0].write("t", {"b": "2"})

    monkeypatch.setattr(SpooledRun, "release", released)
    run.remove()
    (found,) = spool.runs()
    assert found.header.name == "later"
    assert list(found.records()) == [["t", {"b": "2"}]]


def test_whoever_begins_in_the_midst_of_a_deletion_keeps_its_lock(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = spool.begin(HEADER)
    others: list[SpooledRun] = []
    delete = os.unlink

    def deleting(path: Any, **named: Any) -> None:
        delete(path, **named)
        if not others and Path(path).name == "lock":
            others.append(spool.begin(replace(HEADER, name="later")))
            others[0].write("t", {"b": "2"})

    monkeypatch.setattr(os, "unlink", deleting)
    run.remove()
    assert list(others[0].records()) == [["t", {"b": "2"}]]
    assert not SpooledRun(run.folder).acquire()


def test_a_folder_that_goes_before_it_is_locked_is_made_again(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = SpooledRun.acquire

    def acquiring(self: SpooledRun) -> bool:
        monkeypatch.setattr(SpooledRun, "acquire", acquire)
        self.folder.rmdir()
        return acquire(self)

    monkeypatch.setattr(SpooledRun, "acquire", acquiring)
    run = spool.begin(HEADER)
    run.write("t", {"b": "2"})
    assert list(run.records()) == [["t", {"b": "2"}]]


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_is_not_wanted_after_all_stays_as_it_was(spool: Spool, there: bool) -> None:
    if there:
        run = spool.begin(HEADER)
        run.write("e", "complete", 1)
        run.set_mark(Mark("id", "7", offset=run.size, closed=True))
        run.release()

    def ready() -> None:
        raise Killed

    with pytest.raises(Killed):
        spool.begin(HEADER, ready)
    assert [list(run.records()) for run in spool.runs()] == [[["e", "complete", 1]]] * there
    assert [run.mark.closed for run in spool.runs()] == [True] * there
    assert len(list(spool.folder.iterdir())) == there
    spool.begin(HEADER).remove()  # nobody holds it


def test_parents_come_before_children(spool: Spool) -> None:
    for uid, parent, begun in (("c1", "p", 1), ("p", "", 5), ("c2", "p", 9), ("q", "", 2)):
        spool.begin(replace(HEADER, uid=uid, parent=parent, start_time=begun)).release()
    assert [run.header.uid for run in spool.runs()] == ["q", "p", "c1", "c2"]


def test_what_is_no_run_is_left_alone(spool: Spool) -> None:
    (spool.folder / "other").mkdir(parents=True)
    (spool.folder / "file.txt").write_text("mine")
    assert list(spool.runs()) == []
    assert list(Spool(spool.folder / "missing").runs()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs a file in the place of a folder")
def test_a_spool_that_cannot_be_written_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="choose another folder by LRSEARCH_SPOOL"):
        Spool(tmp_path / "file" / "spool").begin(HEADER)


def test_files_are_kept_beside(spool: Spool) -> None:
    run = spool.begin(HEADER)
    name = run.add_file(b"\x00\xff")
    run.write("f", "figures/a.png", name)
    assert run.file(name).read_bytes() == b"\x00\xff"
    assert json.loads((run.folder / "run.json").read_text())["uid"] == HEADER.uid
    run.remove()
    assert not run.folder.exists()
