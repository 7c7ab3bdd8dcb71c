"""The deep tables: their cells, what tells them apart, published against measured, quick cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cifar_files import write_cifar
from reproducing import Called, assert_compares, assert_files, assert_goes_on

from experiments.deep import table3, table4
from experiments.deep.published import FACTORS, TABLE3, TABLE4
from experiments.epochs import summary
from experiments.harness.choosing import chosen_cells, decided
from experiments.harness.reproduction import Plan, Results


def plan_of(module, **chosen):
    return decided(module.REPRODUCTION, Plan(**chosen))


# --- cells -----------------------------------------------------------------------------------


def test_table_4_has_exptest_and_five_optimizers_at_five_rates_a_seed():
    cells = table4.cells(plan_of(table4))
    assert len(cells) == 5 * (3 + 4 * 5 + 1)
    assert [cell["seed"] for cell in cells] == sorted(cell["seed"] for cell in cells)
    assert cells[0] == {"method": "ExpTest (paper)", "rate": "own", "seed": 0}
    keys = {(cell["method"], cell["rate"]) for cell in cells}
    assert {key for key in keys if not key[0].startswith("ExpTest")} == set(TABLE4)
    given = table4.settings(plan_of(table4))
    assert given == {
        "rows": 50_000,
        "test_rows": 10_000,
        "epochs": 75,
        "batch_size": 128,
        "precision": "fp32",
    }


def test_table_3_has_every_line_once_and_the_paper_leads():
    plan = plan_of(table3)
    cells = table3.cells(plan)
    assert len(TABLE3) == len({line.key for line in TABLE3}) == len(cells) == 37
    assert [(cell["network"], cell["algorithm"], cell["decay"]) for cell in cells[:2]] == [
        ("ResNet20", "SGD", "1e-3"),
        ("DenseNet", "Momentum", "1e-4"),
    ]
    assert {cell["policy"] for cell in cells[:2]} == {"Adaptive"}
    # Where MNIST is missing all else is measured.
    assert [cell["dataset"] for cell in cells[-4:]] == ["CIFAR-100", "MNIST", "MNIST", "MNIST"]
    given = table3.settings(plan)
    assert (given["epochs"], given["batch_size"], given["decay"]) == (300, 128, "rate")
    assert (given["mnist_epochs"], given["mnist_batch_size"]) == (20, 256)


def test_a_quick_plan_has_every_network_and_algorithm():
    cells = table3.cells(plan_of(table3, scale="quick"))
    kinds = [(cell["dataset"], cell["network"], cell["algorithm"]) for cell in cells]
    assert len(kinds) == len(set(kinds))
    assert set(kinds) == {(line.dataset, line.network, line.algorithm) for line in TABLE3}


def test_rows_are_chosen_by_what_the_table_prints():
    chosen = chosen_cells(
        table3.REPRODUCTION, plan_of(table3, rows=("cifar-10 resnet20 sgd *", "*DenseNet Adam A*"))
    )
    assert {tuple(cell[name] for name in table3.BY)[:4] for cell in chosen} == {
        *(("CIFAR-10", "ResNet20", "SGD", policy) for policy in ("Baseline", "Fixed", "Adaptive")),
        *((f"CIFAR-{k}", "DenseNet", "Adam", "Adaptive") for k in (10, 100)),
    }


@pytest.mark.parametrize("module", [table3, table4])
def test_what_changes_numbers_makes_other_cells_and_what_is_fast_does_not(module):
    plain = module.settings(plan_of(module))
    assert module.settings(plan_of(module, options=(("precision", "bf16"),))) != plain
    assert module.settings(plan_of(module, epochs=3)) != plain
    for option in (("layout", "channels_last"), ("compile", "graphs"), ("deterministic", "on")):
        assert module.settings(plan_of(module, options=(option,))) == plain
    if module is table3:
        assert module.settings(plan_of(module, options=(("decay", "l2"),))) != plain


# --- reports ---------------------------------------------------------------------------------


def epoch(number, accuracy, **more):
    told = {"train_loss": 0.5, "train_accuracy": 80.0, "test_loss": 0.7, "seconds": 9.0}
    return {"epoch": number, "accuracy": accuracy, "lr": 0.1 / number, **told, **more}


def results(runs, **more):
    rows, epochs = [], []
    for number, (cell, given) in enumerate(runs):
        row = {**cell, **summary(given), "train_rows": 50_000, "device": "H100, fp32"}
        row |= {**more, "curve": number}
        rows.append(row)
        epochs += [{"run": number, **cell, **each} for each in given]
    curves = [np.linspace(2, 0.5, 400).astype(np.float32) for _ in runs]
    return Results(pd.DataFrame(rows), curves, pd.DataFrame(epochs))


def test_the_best_epoch_of_vgg_stands_beside_the_published_mean():
    whole = [epoch(n + 1, 80.0 + (n == 40)) for n in range(75)]
    cells = [
        {"method": "ExpTest (robust)", "rate": "own", "seed": 0},
        {"method": "Adam", "rate": "0.1", "seed": 0},
        {"method": "Adam", "rate": "0.1", "seed": 1},
    ]
    report = table4.report(results([(cell, whole) for cell in cells]), plan_of(table4))
    table = report.tables["comparison"].set_index("method")
    assert table["measured"].to_dict() == {"ExpTest (robust)": 81.0, "Adam": 81.0}
    assert table["published"].to_dict() == {"ExpTest (robust)": 81.52, "Adam": 81.51}
    assert table.loc["Adam", "measured_n"] == 2
    # Numpy's deviation of five runs, brought to the sample form.
    assert table.loc["Adam", "published_sd"] == pytest.approx(0.35 * (5 / 4) ** 0.5)
    assert "H100, fp32: 3 runs, 33.8 minutes in all" in report.text  # 75 epochs of 9 seconds
    assert "not finished" not in report.text
    assert "training images" not in report.text
    assert report.summary == {"test/accuracy/robust": 81.0}
    assert len(report.figures["curves"].axes) == len(FACTORS)


def line_cell(index):
    return {**dict(zip(table3.BY, TABLE3[index].key, strict=True)), "seed": 0}


def test_unfinished_runs_and_parts_of_the_data_are_told():
    runs = [
        (line_cell(5), [epoch(1, 50.0)]),
        (line_cell(6), [epoch(n, 60.0) for n in range(1, 301)]),
    ]
    report = table3.report(results(runs, train_rows=16_000), plan_of(table3))
    assert "1 runs are not finished" in report.text
    assert "2 runs saw 16000 of 50000 training images: their gaps mean nothing" in report.text
    assert report.tables["comparison"]["published"].tolist() == [89.37, 58.29]
    assert set(report.figures) == {"rates", "accuracy"}


@pytest.mark.parametrize(("decay", "says"), [("rate", "a decay of the rate"), ("l2", "an L2")])
def test_the_report_says_how_weight_decay_was_read(decay, says):
    report = table3.report(
        results([(line_cell(5), [epoch(1, 50.0)])]), plan_of(table3, options=(("decay", decay),))
    )
    assert f"its weight decay is {says}" in report.text


# --- quick cuts ------------------------------------------------------------------------------


class Deep(Called):
    """Of one epoch, which is enough here."""

    def __call__(self, *more: str) -> str:
        return super().__call__("--epochs", "1", *more)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    for name in ("cifar10", "cifar100"):
        write_cifar(folder, name)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 28, 28)).astype(np.uint8)
    labels = rng.integers(0, 10, 40).astype(np.uint8)
    np.savez(
        folder / "mnist.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    monkeypatch.setattr("reproducing.DATA", folder)
    return folder


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("a finished cell was measured again")


@pytest.mark.slow
def test_a_quick_cut_of_table_4_has_every_method_and_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    call = Deep("exptest-table4", tmp_path / "out", capsys)
    assert "quick cut" in call("--no-tracking")
    (call.out / "checkpoints").rmdir()  # empty: every cell is finished
    assert_files(call, {"comparison", "epochs"}, {"curves"})
    forms = {(form, "own") for form in table4.FORMS}
    fixed = {(method, "1") for method in ("Adam", "SGD", "SGD w/ Mom.", "RMSprop")}
    assert_compares(call, ["method", "rate"], forms | fixed | {("Adadelta", "own")}, "accuracy")
    runs = call.table("runs").set_index("method")
    # Rates are multiples of one bound, where ExpTest's paper form starts too.
    limit = runs.loc["ExpTest (paper)", "lr"]
    assert (runs.loc[["Adam", "SGD", "RMSprop", "SGD w/ Mom."], "lr"] == limit).all()
    assert runs.loc["ExpTest (robust, paper's bound)", "lr"] == limit
    assert runs.loc["ExpTest (robust)", "lr"] != limit
    assert np.isnan(runs.loc["Adadelta", "lr"])
    assert np.isfinite(runs["train_loss"]).all()
    assert runs["device"].str.contains("fp32").all()
    monkeypatch.setattr("experiments.deep.cells.train", refuse)
    assert_goes_on(call, monkeypatch, {"comparison", "epochs"})


@pytest.mark.slow
def test_a_quick_cut_of_table_3_has_every_network_and_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    call = Deep("lipschitz-table3", tmp_path / "out", capsys)
    text = call("--no-tracking")
    assert "quick cut" in text
    assert "its weight decay is a decay of the rate" in text
    (call.out / "checkpoints").rmdir()
    tables = {"comparison", "comparison_last", "epochs"}
    assert_files(call, tables, {"rates", "accuracy"})
    plan = plan_of(table3, scale="quick")
    lines = {tuple(cell[name] for name in table3.BY) for cell in table3.cells(plan)}
    assert_compares(call, list(table3.BY), lines, "accuracy")
    epochs = call.table("epochs")
    sgd = epochs[(epochs["algorithm"] == "SGD") & (epochs["policy"] == "Adaptive")]
    assert (sgd["lr"] * sgd["lipschitz"]).tolist() == pytest.approx([1.0] * len(sgd))
    assert (epochs["lr"] > 0).all()
    assert np.isfinite(epochs["train_loss"]).all()
    monkeypatch.setattr("experiments.deep.cells.train", refuse)
    monkeypatch.setattr("experiments.deep.table3.train", refuse)
    assert_goes_on(call, monkeypatch, tables)


@pytest.mark.slow
def test_rows_of_two_machines_make_one_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Path
) -> None:
    """By the command line: one has ResNet-20 with SGD, the other with momentum."""
    calls = {}
    for name in ("SGD", "Momentum"):
        calls[name] = Deep("lipschitz-table3", tmp_path / name, capsys)
        calls[name]("--no-tracking", "--rows", f"CIFAR-10 ResNet20 {name} *")
        assert len(calls[name].table("runs")) == 1
    accuracies = [calls[name].table("runs")["accuracy"].item() for name in calls]
    before = calls["Momentum"].cells()
    text = calls["SGD"](*("--no-tracking", "--merge", str(calls["Momentum"].out), "--minutes", "0"))
    assert "18 cells are not measured yet" in text
    merged = calls["SGD"].table("runs")
    assert merged["algorithm"].tolist() == ["SGD", "Momentum"]
    assert merged["accuracy"].tolist() == accuracies
    assert calls["Momentum"].cells() == before
