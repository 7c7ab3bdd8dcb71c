"""Cells are kept whole or not at all: round trips, damage, killed workers, killed runs, time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from experiments.harness import cells as cells_module
from experiments.harness.cells import CellStore, Measured, run_cells
from experiments.harness.reproduction import Plan, Report, Reproduction, run
from lrsearch.errors import InvalidArgumentError, MissingDataError

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"rows": 10}
CELL = {"method": "SGD w/ Mom.", "rate": "0.001", "seed": 3}
MEASURED = Measured(
    [{"loss": 0.25, "says": "µ ≤ 1", "step": None}, {"loss": float("nan"), "says": "", "step": 7}],
    [np.array([1.0, 0.5, np.inf], np.float32), np.array([], np.float32)],
    [[{"epoch": 1, "k_z": None}, {"epoch": 2, "k_z": 0.5}], []],
    complete=False,
)
# What worker processes import: a measurement that marks where it was, and dies when it is told to.
HELPER = """
import os
import signal
import time
from pathlib import Path

import numpy as np

from experiments.harness.cells import Measured


def measure(cell, plan=None):
    folder = Path(cell["folder"])
    began = time.monotonic()
    poison = folder / f"poison-{cell['number']}"
    if poison.exists():
        end = began + 60
        while len(list((folder / "out/cells").glob("*.npz"))) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    trouble = folder / f"trouble-{cell['number']}"
    if trouble.exists():
        raise FileNotFoundError("no data")
    time.sleep(cell.get("seconds", 0.0))
    with (folder / "calls").open("a") as file:
        file.write(f"{cell['number']}\\n")
    row = {"value": 2.0 * cell["number"], "process": os.getpid(), "began": began}
    return Measured([row], [np.full(3, cell["number"], np.float32)])
"""
SCRIPT = """
import sys
from pathlib import Path

from cells_helper_of_a_test import measure
from experiments.harness.reproduction import Plan, Report, Reproduction, run

folder, workers = sys.argv[1:]
tiny = Reproduction(
    "tiny",
    "a tiny one",
    lambda plan: {},
    lambda plan: [{"number": i, "folder": folder, "seconds": 0.5} for i in range(6)],
    measure,
    lambda results, plan: Report("", {}),
)
if __name__ == "__main__":
    run(tiny, Plan(), out=Path(folder, "out"), workers=int(workers))
"""


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """A function of a module that child processes find too."""
    (tmp_path / "cells_helper_of_a_test.py").write_text(HELPER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield import_module("cells_helper_of_a_test").measure
    del sys.modules["cells_helper_of_a_test"]


def numbered(folder, count, **more):
    return [{"number": number, "folder": str(folder), **more} for number in range(count)]


def tiny(measure, folder, count=6, **more):
    return Reproduction(
        name="tiny",
        title="a tiny one",
        settings=lambda plan: {},
        cells=lambda plan: numbered(folder, count, **more),
        measure=measure,
        report=lambda results, plan: Report("done", {"values": results.rows[["number", "value"]]}),
    )


def calls(folder):
    path = folder / "calls"
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


def kept_files(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "out" / "cells").glob("*.npz")}


# --- the store -------------------------------------------------------------------------------


def test_a_cell_comes_back_as_it_was_kept(tmp_path):
    store = CellStore(tmp_path / "a" / "b", SETTINGS, version="1.2+abc")
    assert store.find(CELL) is None
    store.keep(CELL, MEASURED)
    found, version = CellStore(tmp_path / "a" / "b", SETTINGS, version="2").find(CELL)
    assert version == "1.2+abc"
    assert found.rows[0] == MEASURED.rows[0]
    assert np.isnan(found.rows[1]["loss"])
    assert list(found.rows[1]) == ["loss", "says", "step"]
    assert len(found.curves) == 2
    for mine, theirs in zip(found.curves, MEASURED.curves, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_array_equal(mine, theirs)
    assert found.history == MEASURED.history
    assert not found.complete


def test_a_cell_from_before_there_were_epochs_is_a_finished_one(tmp_path):
    store = CellStore(tmp_path, SETTINGS, version="1")
    store.keep(CELL, MEASURED)
    (path,) = tmp_path.iterdir()
    with np.load(path) as archive:
        arrays = dict(archive)
    record = json.loads(str(arrays["record"]))
    del record["history"], record["complete"]
    np.savez(path, **{**arrays, "record": np.array(json.dumps(record))})
    found, _ = store.find(CELL)
    assert found.complete
    assert list(found.history) == []
    assert len(found.curves) == 2


def test_a_cell_may_have_no_curves(tmp_path):
    store = CellStore(tmp_path, SETTINGS, version="1")
    store.keep(CELL, Measured([{"a": 1}]))
    found, _ = store.find(CELL)
    assert (list(found.rows), list(found.curves)) == ([{"a": 1}], [])


def test_other_settings_and_other_cells_are_not_found(tmp_path):
    store = CellStore(tmp_path, SETTINGS, version="1")
    store.keep(CELL, MEASURED)
    assert CellStore(tmp_path, {"rows": 11}, version="1").find(CELL) is None
    assert CellStore(tmp_path, {}, version="1").find(CELL) is None
    for other in ({**CELL, "seed": 4}, {**CELL, "rate": 0.001}, {**CELL, "more": 1}):
        assert store.find(other) is None
    assert store.find(CELL) is not None


def test_cells_that_look_alike_as_file_names_are_kept_apart(tmp_path):
    store = CellStore(tmp_path, SETTINGS, version="1")
    alike = [{"a": "x/y"}, {"a": "x y"}, {"a": "x:y"}, {"a": "x" * 200}, {"a": "x" * 201}]
    for number, cell in enumerate(alike):
        store.keep(cell, Measured([{"number": number}]))
    assert [store.find(cell)[0].rows[0]["number"] for cell in alike] == [0, 1, 2, 3, 4]


def test_keeping_again_replaces_and_leaves_no_side_file(tmp_path):
    store = CellStore(tmp_path, SETTINGS, version="1")
    for value in (1, 2):
        store.keep(CELL, Measured([{"value": value}]))
    assert store.find(CELL)[0].rows == [{"value": 2}]
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_forgotten_cells_are_gone_and_others_stay(tmp_path):
    store = CellStore(tmp_path, SETTINGS, version="1")
    other = {**CELL, "seed": 9}
    for cell in (CELL, other):
        store.keep(cell, MEASURED)
    store.forget([CELL, {**CELL, "seed": 10}])
    assert store.find(CELL) is None
    assert store.find(other) is not None


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "first bytes": lambda content: content[:20],
    "half": lambda content: content[: len(content) // 2],
    "all but the last byte": lambda content: content[:-1],
    "garbage": lambda content: b"garbage" * 100,
    "zeros": lambda content: bytes(len(content)),
    "one byte": flipped,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_counts_as_missing_and_can_be_kept_anew(tmp_path, damage):
    store = CellStore(tmp_path, SETTINGS, version="1")
    noise = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    store.keep(CELL, Measured([{"a": 1}], [noise]))
    (path,) = tmp_path.iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert store.find(CELL) is None
    store.keep(CELL, MEASURED)
    assert store.find(CELL)[0].rows[0] == MEASURED.rows[0]


def test_a_write_that_fails_leaves_the_old_cell(tmp_path, monkeypatch):
    store = CellStore(tmp_path, SETTINGS, version="1")
    store.keep(CELL, Measured([{"value": 1}]))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidArgumentError, match="No space left on device; what is finished"):
        store.keep(CELL, Measured([{"value": 2}]))
    assert store.find(CELL)[0].rows == [{"value": 1}]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match=r"--out: .*file/cells"):
        CellStore(tmp_path / "file" / "cells", SETTINGS, version="1")


# --- running cells ---------------------------------------------------------------------------


def test_one_worker_measures_here_and_in_order(tmp_path, measure):
    given = numbered(tmp_path, 4)
    done = list(run_cells(measure, given, workers=1))
    assert [cell for cell, _ in done] == given
    assert [part.rows[0]["value"] for _, part in done] == [0.0, 2.0, 4.0, 6.0]
    assert {part.rows[0]["process"] for _, part in done} == {os.getpid()}


@pytest.mark.slow
def test_two_workers_measure_every_cell_once_and_elsewhere(tmp_path, measure):
    given = numbered(tmp_path, 7, seconds=0.1)
    done = list(run_cells(measure, given, workers=2))
    assert sorted(cell["number"] for cell, _ in done) == list(range(7))
    assert all(part.rows[0]["value"] == 2.0 * cell["number"] for cell, part in done)
    assert calls(tmp_path) == dict.fromkeys(range(7), 1)
    processes = {part.rows[0]["process"] for _, part in done}
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 2


def test_no_cells_are_no_work(measure):
    assert list(run_cells(measure, [], workers=1)) == []
    assert list(run_cells(measure, [], workers=2)) == []


@pytest.fixture
def clock(monkeypatch):
    """Time as ``run_cells`` sees it; each measured cell takes ten seconds of it."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(cells_module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def timed(clock, measure):
    def slow(cell, plan=None):
        clock.seconds += 10.0
        return measure(cell, plan)

    return slow


def test_no_cell_begins_after_the_time_is_up(tmp_path, measure, clock):
    done = run_cells(timed(clock, measure), numbered(tmp_path, 6), workers=1, seconds=25.0)
    assert [cell["number"] for cell, _ in done] == [0, 1, 2]


@pytest.mark.slow
def test_when_time_is_up_no_worker_has_a_second_cell_waiting(tmp_path, measure, clock):
    running = run_cells(measure, numbered(tmp_path, 6), workers=2, seconds=25.0)
    first = next(running)
    clock.seconds += 100.0
    assert len([first, *running]) == 2  # one a worker


# --- a reproduction goes on where it stood ---------------------------------------------------


def test_a_second_run_measures_nothing_and_reports_the_same(tmp_path, measure):
    first = run(tiny(measure, tmp_path), Plan(), out=tmp_path / "out", workers=1)
    files = kept_files(tmp_path)
    second = run(tiny(measure, tmp_path), Plan(), out=tmp_path / "out", workers=1)
    assert (first.measured, first.missing) == (6, 0)
    assert (second.measured, second.missing) == (0, 0)
    assert calls(tmp_path) == dict.fromkeys(range(6), 1)
    assert kept_files(tmp_path) == files
    pd.testing.assert_frame_equal(first.results.rows, second.results.rows)
    assert pd.read_parquet(tmp_path / "out" / "values.parquet")["value"].tolist() == [
        2.0 * number for number in range(6)
    ]
    assert (tmp_path / "out" / "report.txt").read_text() == "done\n"


def test_rows_and_curves_come_in_the_order_of_the_cells(tmp_path, measure):
    whole = tiny(measure, tmp_path)
    backwards = Reproduction(
        whole.name,
        whole.title,
        whole.settings,
        lambda plan: list(reversed(whole.cells(plan))),
        whole.measure,
        whole.report,
    )
    run(backwards, Plan(), out=tmp_path / "out", workers=1)
    results = run(whole, Plan(), out=tmp_path / "out", workers=1).results
    assert results.rows["number"].tolist() == list(range(6))
    for number, curve in enumerate(results.curves_of(results.rows)):
        np.testing.assert_array_equal(curve, np.full(3, number, np.float32))


def test_more_cells_measure_only_the_new_ones(tmp_path, measure):
    run(tiny(measure, tmp_path, 3), Plan(), out=tmp_path / "out", workers=1)
    again = run(tiny(measure, tmp_path, 5), Plan(), out=tmp_path / "out", workers=1)
    assert again.measured == 2
    assert calls(tmp_path) == dict.fromkeys(range(5), 1)


def test_fresh_measures_everything_anew(tmp_path, measure):
    run(tiny(measure, tmp_path), Plan(), out=tmp_path / "out", workers=1)
    again = run(tiny(measure, tmp_path), Plan(), out=tmp_path / "out", workers=1, fresh=True)
    assert (again.measured, again.missing) == (6, 0)
    assert calls(tmp_path) == dict.fromkeys(range(6), 2)


def test_when_time_is_up_what_is_there_is_reported(tmp_path, measure, clock):
    reproduction = tiny(timed(clock, measure), tmp_path)
    first = run(reproduction, Plan(), out=tmp_path / "out", workers=1, minutes=25 / 60)
    assert (first.measured, first.missing) == (3, 3)
    assert first.results.rows["number"].tolist() == [0, 1, 2]
    rest = run(reproduction, Plan(), out=tmp_path / "out", workers=1)
    assert (rest.measured, rest.missing) == (3, 0)
    assert calls(tmp_path) == dict.fromkeys(range(6), 1)


def test_no_time_at_all_says_so(tmp_path, measure):
    with pytest.raises(MissingDataError, match="no cell of tiny is finished"):
        run(tiny(measure, tmp_path), Plan(), out=tmp_path / "out", workers=1, minutes=-1.0)
    assert calls(tmp_path) == {}


def test_versions_tell_which_code_measured(tmp_path, measure, monkeypatch):
    monkeypatch.setattr("experiments.harness.reproduction.code_version", lambda: "old")
    run(tiny(measure, tmp_path, 2), Plan(), out=tmp_path / "out", workers=1)
    monkeypatch.setattr("experiments.harness.reproduction.code_version", lambda: "new")
    done = run(tiny(measure, tmp_path, 3), Plan(), out=tmp_path / "out", workers=1)
    assert list(done.versions) == ["new", "old"]
    assert done.version == "new"


def test_a_watcher_is_told_of_kept_and_finished_cells(tmp_path, measure):
    told = []
    watcher = SimpleNamespace(
        started=lambda name, *, total, kept: told.append((name, total, kept)),
        finished=lambda cell: told.append(cell["number"]),
    )
    run(tiny(measure, tmp_path, 2), Plan(), out=tmp_path / "out", workers=1)
    run(tiny(measure, tmp_path, 4), Plan(), out=tmp_path / "out", workers=1, watcher=watcher)
    assert told == [("tiny", 4, 2), 2, 3]


def test_an_error_in_a_cell_keeps_the_cells_before_it(tmp_path, measure):
    (tmp_path / "trouble-3").write_text("")
    with pytest.raises(FileNotFoundError, match="no data"):
        run(tiny(measure, tmp_path), Plan(), out=tmp_path / "out", workers=1)
    assert len(kept_files(tmp_path)) == 3


@pytest.mark.slow
def test_a_killed_worker_loses_no_finished_cell_and_the_next_run_goes_on(tmp_path, measure):
    (tmp_path / "poison-0").write_text("")  # waits for two finished cells, then dies
    with pytest.raises(MissingDataError, match="run the same command again"):
        run(tiny(measure, tmp_path), Plan(), out=tmp_path / "out", workers=2)
    files = kept_files(tmp_path)
    assert 2 <= len(files) < 6
    assert not list((tmp_path / "out" / "cells").glob("*.tmp"))
    (tmp_path / "poison-0").unlink()
    again = run(tiny(measure, tmp_path), Plan(), out=tmp_path / "out", workers=1)
    assert (again.measured, again.missing) == (6 - len(files), 0)
    assert {path: kept_files(tmp_path)[path] for path in files} == files
    assert again.results.rows["value"].tolist() == [2.0 * number for number in range(6)]


def killed_midway(folder, workers):
    """Start a run as a process, and kill it once two cells are kept."""
    script = folder / "killed.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    process = subprocess.Popen([sys.executable, str(script), str(folder), workers], env=environment)
    try:
        deadline = time.monotonic() + 60
        while len(kept_files(folder)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = children_of(process.pid)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    return children


def children_of(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_finished_cells_untouched(tmp_path, measure):
    killed_midway(tmp_path, "1")
    files = kept_files(tmp_path)
    assert 2 <= len(files) < 6
    again = run(tiny(measure, tmp_path, seconds=0.5), Plan(), out=tmp_path / "out", workers=1)
    assert (again.measured, again.missing) == (6 - len(files), 0)
    assert {path: kept_files(tmp_path)[path] for path in files} == files
    assert again.results.rows["value"].tolist() == [2.0 * number for number in range(6)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_workers_of_a_killed_run_end_too(tmp_path, measure):
    children = killed_midway(tmp_path, "2")
    assert children
    deadline = time.monotonic() + 15
    try:
        while any(is_running(child) for child in children) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [child for child in children if is_running(child)]
    finally:
        for child in children:
            if is_running(child):
                os.kill(child, signal.SIGKILL)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_only_chosen_cells_are_measured_and_all_that_is_kept_is_shown(tmp_path, measure):
    run(tiny(measure, tmp_path, 2), Plan(), out=tmp_path / "out", workers=1)
    options = {"out": tmp_path / "out", "workers": 1, "only": lambda cell: cell["number"] == 3}
    again = run(tiny(measure, tmp_path, 4), Plan(), **options)
    assert (again.measured, again.missing) == (1, 1)
    assert again.results.rows["number"].tolist() == [0, 1, 3]
    run(tiny(measure, tmp_path, 4), Plan(), **options, fresh=True)
    assert calls(tmp_path) == {0: 1, 1: 1, 3: 2}


def test_with_nothing_measured_and_nothing_to_measure_the_remedy_is_to_measure(tmp_path, measure):
    with pytest.raises(MissingDataError, match="no cell of tiny is finished: measure some"):
        run(tiny(measure, tmp_path), Plan(), out=tmp_path / "out", workers=1, only=lambda _: False)
