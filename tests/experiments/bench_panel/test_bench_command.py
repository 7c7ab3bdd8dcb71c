"""``lrsearch bench`` from a file to tables and figures: kept cells, failures, choices, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from experiments.bench.bank import train_bank
from experiments.bench.methods import pack, unpack
from experiments.bench.tasks import make_task
from lrsearch.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
PANEL = {
    "seeds": 2,
    "optimizers": ["sgd"],
    "shifts": ["short budget"],
    "bases": {"wine-linear": None},
    "reference": "exptest",
    "methods": {
        "bank": {"kind": "bank"},
        "exptest": {"kind": "search", "options": {"method": "exptest"}},
        "nine": {"kind": "replay", "name": "grid"},
        "Adadelta": {"kind": "peer"},
        "impossible": {"kind": "search", "options": {"method": "exptest", "trials": 0}},
    },
}
PNG = b"\x89PNG\r\n\x1a\n"
TABLES = {"summary", "cases", "shifts", "paired", "methods", "broken"}
FIGURES = {"profile", "regret_by_shift", "cost_and_regret", "rates"}


class Called:
    def __init__(self, folder, capsys):
        self.out, self.capsys = folder / "out", capsys
        self.panel = folder / "panel.yaml"
        self.panel.write_text(yaml.safe_dump(PANEL))

    @property
    def arguments(self):
        places = ["--panel", str(self.panel), "--out", str(self.out)]
        return ["bench", *places, "--workers", "1"]

    def __call__(self, *more, status=0):
        assert main([*self.arguments, *more]) == status
        out, err = self.capsys.readouterr()
        if not status:
            assert err == ""
        return err if status else out

    def json(self, *more):
        return json.loads(self("--json", "-", *more))

    def cells(self):
        return {path.name: path.stat().st_mtime_ns for path in (self.out / "cells").glob("*.npz")}


@pytest.fixture
def call(tmp_path, capsys):
    return Called(tmp_path, capsys)


def measured_again(*_, **__):
    raise AssertionError("a finished cell was measured again")


def test_a_panel_from_its_file_to_tables_and_figures(call, monkeypatch):
    content = call.json()
    assert (content["missing_cells"], content["folder"]) == (0, str(call.out))
    assert set(content["tables"]) == TABLES
    files = {path.name for path in call.out.iterdir()}
    assert {f"{name}.parquet" for name in (*TABLES, "runs")} <= files
    assert {f"{name}.png" for name in FIGURES} <= files
    for name in FIGURES:
        assert (call.out / f"{name}.png").read_bytes().startswith(PNG)

    rows = pd.read_parquet(call.out / "methods.parquet").set_index(["method", "seed"])
    methods = ("exptest", "nine", "Adadelta", "impossible")
    assert set(rows.index) == {(name, seed) for name in methods for seed in (0, 1)}
    run = 70  # ten passes over 106 rows in batches of 16
    assert rows.loc["nine", "steps"].tolist() == [9 * run] * 2
    assert rows.loc["Adadelta", "cost"].tolist() == [1.0, 1.0]
    assert (rows.loc["exptest", "steps"] >= run).all()
    # What a method raises is its own failure, with its text, and the panel goes on.
    assert rows.loc["impossible", "failed"].all()
    assert rows.loc["impossible", "reason"].str.contains("trials").all()
    assert rows.loc["impossible", "points"].tolist() == [100.0, 100.0]
    failures = {line["method"]: line["failures"] for line in content["tables"]["summary"]}
    assert failures["impossible"] == 1
    assert failures["nine"] == 0

    # A second call measures nothing, replays nothing, and says the same.
    cells = call.cells()
    assert len(cells) == 4  # a replay has none
    for name in ("_bank", "_peer", "_searched", "replay"):
        monkeypatch.setattr(f"experiments.bench.methods.{name}", measured_again)
    monkeypatch.setattr("experiments.bench.replaying.replay", measured_again)
    text = call()
    assert "Against the best fixed rate of the same optimizer:" in text
    assert "Against the best fixed rate over all optimizers" in text
    assert call.cells() == cells
    assert call.json("--report")["tables"] == content["tables"]


def test_only_what_is_asked_for_is_measured_and_the_rest_is_gone_on_with(call):
    error = call("--report", status=2)
    assert "no cell of bench is finished" in error
    content = call.json("--only", "/(bank|Adadelta)$")
    assert content["missing_cells"] == 2
    kept = call.cells()
    assert len(kept) == 2
    assert {row["method"] for row in content["tables"]["cases"]} == {"Adadelta", "nine"}
    assert call.json()["missing_cells"] == 0
    assert kept.items() <= call.cells().items()
    call("--fresh", "--only", "Adadelta")
    changed = {name for name, when in call.cells().items() if kept.get(name, when) != when}
    assert len(changed) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--only", "("], "--only must be a regular expression"),
        (["--only", "prodigy"], "--only matches no cell.*wine-linear/short budget/sgd/bank"),
        (["--workers", "0"], "workers must be"),
        (["--minutes", "-1"], "minutes must be at least 0"),
        (["--minutes", "0"], "no cell of bench is finished"),
    ],
)
def test_bad_options_are_one_line(call, options, told):
    import re

    error = call(*options, status=2)
    assert re.search(told, error)
    assert error.count("\n") == 1


def test_a_panel_without_its_bank_has_nothing_to_compare(call):
    assert "whose bank is finished" in call("--only", "Adadelta", status=2)
    assert len(call.cells()) == 1  # and keeps what it measured


def test_a_bank_is_kept_without_its_curves():
    task = make_task("wine-linear", "short budget")
    data = [task.data(seed) for seed in range(2)]
    runs = train_bank(task, data, range(2), rates=(1e-3, 1e-1, 1e4))
    kept = unpack({seed: pack(runs, seed) for seed in range(2)})
    for name in ("rates", "seeds", "checked", "checks"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(runs, name))
    for name in ("train", "validation", "test"):
        for measure in ("loss", "metric"):
            found = getattr(getattr(kept, name), measure)
            np.testing.assert_array_equal(found, getattr(getattr(runs, name), measure))
    assert kept.curves.shape == (2, 3, 0)


@pytest.mark.slow
def test_a_killed_panel_goes_on_with_finished_cells_untouched(call):
    command = [sys.executable, "-m", "lrsearch.cli.main", *call.arguments]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    try:
        deadline = time.monotonic() + 60
        while not call.cells():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    kept = call.cells()
    assert 1 <= len(kept) < 4
    assert call.json()["missing_cells"] == 0
    assert kept.items() <= call.cells().items()
    assert len(call.cells()) == 4
