"""Quick reproductions by the command line, as tests call them and look at what they leave."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lrsearch.cli.main import main

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = Path(os.environ.get("LRSEARCH_DATA", BESIDE))
FILES = {
    "recorded": "exptest_recorded.npz",
    "housing": "california_housing.npz",
    "mnist": "mnist-train-images-idx3-ubyte.gz",
    "covertype": "covertype_sample.npz",
}
PNG = b"\x89PNG\r\n\x1a\n"
COMPARED = [
    *("published", "published_sd", "published_n", "measured", "measured_sd", "measured_n"),
    *("not_finite", "gap", "standard_error", "pvalue", "flagged"),
]


def need(kind: str) -> None:
    if not (DATA / FILES[kind]).is_file():
        pytest.skip(f"no {FILES[kind]}: set LRSEARCH_DATA to its folder")


class Called:
    """A quick reproduction by the command line, in a folder of its own."""

    def __init__(self, name: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.name, self.out, self._capsys = name, out, capsys

    def __call__(self, *more: str) -> str:
        command = ["reproduce", self.name, "--scale", "quick", "--seeds", "1", "--workers", "1"]
        places = ["--data-dir", str(DATA), "--out", str(self.out)]
        self._capsys.readouterr()  # what MLflow's client told the test
        assert main([*command, *places, *more]) == 0
        out, err = self._capsys.readouterr()
        assert err == ""  # no terminal, no progress
        return out

    def table(self, name: str = "comparison") -> pd.DataFrame:
        return pd.read_parquet(self.out / f"{name}.parquet")

    def cells(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (self.out / "cells").iterdir()}


def assert_goes_on(call: Called, monkeypatch: pytest.MonkeyPatch, tables: set[str]) -> None:
    """A second call measures nothing and says the same, as JSON alone on stdout."""
    cells, before = call.cells(), {name: call.table(name) for name in tables}
    assert {Path(name).suffix for name in cells} == {".npz"}

    def measured_again(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished cell was measured again")

    monkeypatch.setattr("experiments.banks.Bank.backward", measured_again)
    content = json.loads(call("--no-tracking", "--json", "-"))
    assert call.cells() == cells
    assert content["name"] == call.name
    assert (content["scale"], content["missing_cells"]) == ("quick", 0)
    assert (content["run_id"], content["tracking_uri"]) == ("", "")
    assert content["folder"] == str(call.out)
    assert set(content["tables"]) == tables
    for name, table in before.items():
        pd.testing.assert_frame_equal(call.table(name), table)
        assert len(content["tables"][name]) == len(table)
        assert set(content["tables"][name][0]) == set(table.columns)


def assert_files(call: Called, tables: set[str], figures: set[str]) -> None:
    files = {path.name for path in call.out.iterdir()}
    expected = {"cells", "runs.parquet", "report.txt", *(f"{name}.png" for name in figures)}
    assert files == expected | {f"{name}.{kind}" for name in tables for kind in ("parquet", "csv")}
    for name in figures:
        assert (call.out / f"{name}.png").read_bytes().startswith(PNG)


def assert_compares(call: Called, by: list[str], lines: set[tuple[object, ...]], of: str) -> None:
    """Each line of the table is a group of runs, with its mean."""
    table, runs = call.table(), call.table("runs")
    assert list(table.columns) == [*by, *COMPARED]
    assert set(table[by].itertuples(index=False, name=None)) == lines
    assert len(table) == len(lines) == len(runs)  # one seed
    assert table["measured_n"].eq(1).sum() + table["not_finite"].sum() == len(table)
    finite = runs[np.isfinite(runs[of])]
    assert sorted(table["measured"].dropna()) == sorted(finite[of])
    assert set(runs["seed"]) == {0}
