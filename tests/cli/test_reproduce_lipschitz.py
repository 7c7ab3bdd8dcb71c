"""``lrsearch reproduce lipschitz-...``: quick cuts of the Lipschitz papers' tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reproducing import Called, assert_compares, assert_files, assert_goes_on, need

from experiments.harness.reproduction import Plan
from experiments.lipschitz import shifts as lipschitz_shifts
from experiments.lipschitz.published import TABLE1
from experiments.shifted_digits import GRID, TASKS


@pytest.mark.slow
def test_a_quick_cut_of_the_mnist_cnn_has_every_method_and_epoch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("mnist")
    call = Called("lipschitz-mnist-cnn", tmp_path / "out", capsys)
    text = call("--no-tracking")
    assert "quick cut" in text
    assert "not finished" not in text
    tables = {"comparison", "comparison_last", "epochs"}
    (call.out / "checkpoints").rmdir()  # empty: every cell is finished
    assert_files(call, tables, {"rates", "accuracy"})
    methods = {"SGD", "Momentum", "Adam", "SGD 0.01", "Momentum 0.01", "Adam 0.001"}
    assert_compares(call, ["method"], {(method,) for method in methods}, "accuracy")
    epochs, runs = call.table("epochs"), call.table("runs").set_index("method")
    assert list(epochs.groupby("method")["epoch"].agg(list)) == [[1, 2]] * len(methods)
    for method, rows in epochs.groupby("method"):
        assert runs.loc[method, "accuracy"] == rows["accuracy"].max()
        assert runs.loc[method, "accuracy_last"] == rows["accuracy"].iloc[-1]
    last = call.table("comparison_last").set_index("method")
    assert (last["measured"] == runs["accuracy_last"].reindex(last.index)).all()
    assert last["published"].dropna().to_dict() == {
        "SGD": 99.34,
        "Momentum": 99.51,
        "Adam": 87.95,
    }
    adaptive = epochs[epochs["lipschitz"].notna()]
    assert set(adaptive["method"]) == {"SGD", "Momentum", "Adam"}
    sgd = epochs[epochs["method"] == "SGD"]
    assert (sgd["lr"] * sgd["lipschitz"]).tolist() == pytest.approx([1.0, 1.0])
    fixed = epochs[~epochs["method"].isin(["SGD", "Momentum", "Adam"])]
    assert fixed["lr"].tolist() == [0.01] * 4 + [0.001] * 2
    monkeypatch.setattr(
        "experiments.lipschitz.mnist_cnn.train",
        lambda *_, **__: pytest.fail("a finished cell was measured again"),
    )
    assert_goes_on(call, monkeypatch, tables)


@pytest.mark.slow
def test_a_quick_look_at_lipschitz_rates_has_every_optimizer_and_method(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Called("lipschitz-shifts", tmp_path / "out", capsys)
    text = call("--no-tracking")
    assert "guarded less the other, paired over tasks and seeds" in text
    tables, figures = {"regrets", "totals", "paired"}, {"regrets"}
    assert_files(call, tables, figures)
    table, runs = call.table("regrets"), call.table("runs")
    quick = lipschitz_shifts.tasks_of(Plan("quick"))
    assert set(table[["optimizer", "task", "method"]].itertuples(index=False, name=None)) == {
        (optimizer, task, method)
        for optimizer in lipschitz_shifts.OPTIMIZERS
        for task in quick
        for method in lipschitz_shifts.SEARCHES
    }
    fixed = runs[runs["method"] == "fixed"]
    assert len(fixed) == len(quick) * len(lipschitz_shifts.OPTIMIZERS) * len(GRID)
    best = fixed.groupby(["optimizer", "task"])["accuracy"].max()
    for row in table.to_dict("records"):
        key = row["optimizer"], row["task"]
        assert row["regret"] == pytest.approx(best[key] - row["accuracy"], abs=2e-3)  # rounded
    totals = call.table("totals")
    assert totals["failed"].sum() == table["failed"].sum()
    # Every step of every trial is on the bill: tries and ladders cost more than one training.
    steps = runs[runs["rate"] == "own"].groupby(["optimizer", "method"])["steps"].min()
    assert (steps >= fixed["steps"].min()).all()
    assert_goes_on(call, monkeypatch, tables)


def test_shifts_of_lipschitz_rates_are_those_of_exptest_and_the_six() -> None:
    assert set(TASKS) < set(lipschitz_shifts.ALL)
    assert set(lipschitz_shifts.ALL) - set(TASKS) == {"logistic, inputs x 0.01"}
    assert set(lipschitz_shifts.SIX) <= set(lipschitz_shifts.ALL)
    cells = lipschitz_shifts.cells(Plan())
    assert len(cells) == 12 * 4 * 3
    # Seed by seed: a run that is cut short has the same tasks for every seed but the last.
    assert [cell["seed"] for cell in cells] == sorted(cell["seed"] for cell in cells)


@pytest.mark.slow
def test_a_quick_cut_of_the_lipschitz_epochs_has_every_set_and_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("covertype")
    call = Called("lipschitz-table1", tmp_path / "out", capsys)
    text = call("--no-tracking")
    assert "quick cut" in text
    assert_files(call, {"epochs", "recomputed"}, {"curves"})
    table, runs = call.table("epochs").set_index(["dataset", "rate"]), call.table("runs")
    assert set(runs["dataset"]) == set(TABLE1)
    assert set(runs["seed"]) == {0}
    assert len(table) == len(runs) == 2 * len(TABLE1) + 4  # least squares: the text's K too
    # Least squares are whole on a cut too: energy's printed epochs, up to the initial weights.
    for rate, epochs in (("0.1", 489_592), ("1/L", 3_833)):
        assert table.loc[("energy", rate), "published"] == epochs
        assert table.loc[("energy", rate), "median"] == pytest.approx(epochs, rel=1e-3)
    assert table.loc[("breast-cancer", "0.1"), "not_reached"] == 1  # told, not guessed
    assert np.isnan(table.loc[("breast-cancer", "0.1"), "median"])
    assert table.loc[("breast-cancer", "1/L"), "median"] == 2
    hits = call.table("recomputed")
    hits = hits[hits["verdict"].str.startswith("hit")]
    assert set(hits["dataset"]) == {"boston", "california", "energy", "breast-cancer", "covertype"}
    assert hits["ratio"].between(0.999, 1.001).all()
    for looked in ("descent.Logistic.look", "descent.Softmax.look", "descent.Path.__init__"):
        monkeypatch.setattr(
            f"experiments.lipschitz.{looked}",
            lambda *_, **__: pytest.fail("a finished cell was measured again"),
        )
    assert_goes_on(call, monkeypatch, {"epochs", "recomputed"})
