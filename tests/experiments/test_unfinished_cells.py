"""Cells that stop inside: what there is is shown, and the next call goes on."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd

from experiments.harness import cells as cells_module
from experiments.harness import reproduction as reproduction_module
from experiments.harness.cells import Measured
from experiments.harness.reproduction import Plan, Report, Reproduction, run

SETTINGS = {"rows": 10}
CELL = {"method": "SGD w/ Mom.", "rate": "0.001", "seed": 3}


def in_pieces(folder, count):
    return Reproduction(
        name="tiny",
        title="a tiny one",
        settings=lambda plan: {},
        cells=lambda plan: [{"number": number} for number in range(count)],
        measure=piecemeal(folder),
        report=lambda results, plan: Report("done", {}),
    )


def calls(folder):
    return Counter(map(int, (folder / "calls").read_text().split()))


def piecemeal(folder, pieces=3):
    """A cell in pieces, each of which it keeps; it stops after one when the time is up."""

    def measure(cell, plan):
        checkpoint = plan.checkpoint({}, cell)
        state = checkpoint.load() or {"done": 0}
        while state["done"] < pieces:
            state["done"] += 1
            checkpoint.save(state)
            with (folder / "calls").open("a") as file:
                file.write(f"{cell['number']}\n")
            if time.monotonic() > plan.deadline:
                break
        history = [{"epoch": epoch, "note": ""} for epoch in range(state["done"])]
        row = {"value": 2.0 * cell["number"], "done": state["done"]}
        curve = np.zeros(state["done"], np.float32)
        return Measured([row], [curve], [history], complete=state["done"] == pieces)

    return measure


def test_a_cell_stops_inside_when_time_is_up_is_shown_and_goes_on(tmp_path, monkeypatch):
    now = SimpleNamespace(seconds=1000.0)

    def monotonic():
        now.seconds += 1.0  # so a minute is over within the first cell
        return now.seconds

    clock = SimpleNamespace(monotonic=monotonic)
    for module in (cells_module, reproduction_module):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(f"{__name__}.time", clock)
    reproduction = in_pieces(tmp_path, 2)
    told = []
    watcher = SimpleNamespace(
        started=lambda name, *, total, kept: told.append((total, kept)),
        finished=lambda cell: told.append(cell["number"]),
    )
    for done in (1, 2):
        part = run(
            reproduction, Plan(), out=tmp_path / "out", workers=1, minutes=2 / 60, watcher=watcher
        )
        assert (part.measured, part.missing) == (0, 2)
        assert part.results.rows["done"].tolist() == [done]
        assert part.results.epochs["epoch"].tolist() == list(range(done))
    whole = run(reproduction, Plan(), out=tmp_path / "out", workers=1, watcher=watcher)
    assert (whole.measured, whole.missing) == (2, 0)
    assert told == [(2, 0), (2, 0), (2, 0), 0, 1]
    assert calls(tmp_path) == {0: 3, 1: 3}
    assert whole.results.rows["done"].tolist() == [3, 3]
    epochs = whole.results.epochs
    assert epochs[["run", "number", "epoch"]].values.tolist() == [
        [run, run, epoch] for run in (0, 1) for epoch in range(3)
    ]
    # What was kept to go on is gone, and finished cells are not measured again.
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == []
    again = run(reproduction, Plan(), out=tmp_path / "out", workers=1)
    assert (again.measured, again.missing) == (0, 0)
    pd.testing.assert_frame_equal(again.results.epochs, epochs)


def test_fresh_begins_an_unfinished_cell_anew(tmp_path):
    reproduction = in_pieces(tmp_path, 1)
    folder = tmp_path / "out" / "checkpoints"
    plan = Plan(checkpoints=folder)
    plan.checkpoint({}, reproduction.cells(plan)[0]).save({"done": 2})
    run(reproduction, Plan(), out=tmp_path / "out", workers=1, fresh=True)
    assert calls(tmp_path) == {0: 3}


def test_a_checkpoint_is_of_one_cell_and_its_settings(tmp_path):
    plan = Plan(checkpoints=tmp_path)
    plan.checkpoint(SETTINGS, CELL).save({"step": 1})
    assert plan.checkpoint(SETTINGS, dict(CELL)).load() == {"step": 1}
    assert plan.checkpoint({"rows": 11}, CELL).load() is None
    assert plan.checkpoint(SETTINGS, {**CELL, "seed": 4}).load() is None
    assert Plan().checkpoint(SETTINGS, CELL) is None
