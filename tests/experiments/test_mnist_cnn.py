"""The report on the MNIST CNN: published against measured, unfinished runs, published rates."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments.epochs import summary
from experiments.harness.reproduction import Plan, Results
from experiments.lipschitz import mnist_cnn
from experiments.lipschitz.cnn_published import BEST, LAST, RATES


def epoch(number, accuracy, lr=0.1, loss=0.2):
    return {
        "epoch": number,
        "lr": lr,
        "k_z": 100.0,
        "lipschitz": 0.4,
        "train_loss": loss,
        "train_accuracy": 97.0,
        "accuracy": accuracy,
        "test_loss": 0.1,
        "seconds": 1.0,
    }


def results(runs):
    """Runs by (method, seed): their epochs."""
    rows, epochs = [], []
    for number, ((method, seed), given) in enumerate(runs.items()):
        cell = {"method": method, "seed": seed}
        rows.append({**cell, **summary(given), "curve": None})
        epochs += [{"run": number, **cell, **row} for row in given]
    return Results(pd.DataFrame(rows), [], pd.DataFrame(epochs))


def twenty(best, last):
    return [epoch(n + 1, best if n == 9 else last, lr=1.0 + n) for n in range(20)]


def test_best_and_last_epochs_stand_beside_what_was_published():
    found = mnist_cnn.report(
        results(
            {
                ("Adam 0.001", 0): twenty(99.6, 99.5),
                ("SGD", 0): twenty(99.4, 99.2),
                ("SGD", 1): twenty(99.6, 99.4),
            }
        ),
        Plan(),
    )
    best, last = found.tables["comparison"], found.tables["comparison_last"]
    assert best["method"].tolist() == last["method"].tolist() == ["SGD", "Adam 0.001"]
    assert best["measured"].tolist() == pytest.approx([99.5, 99.6])
    assert last["measured"].tolist() == pytest.approx([99.3, 99.5])
    assert best["published"].iloc[0] == 99.5
    assert best["gap"].iloc[0] == pytest.approx(0.0)
    assert last["gap"].iloc[0] == pytest.approx(-0.04)
    assert np.isnan(best["published"].iloc[1])
    assert found.summary == pytest.approx(
        {
            "test/accuracy/SGD": 99.5,
            "test/accuracy/Adam 0.001": 99.6,
            "test/accuracy_last/SGD": 99.3,
            "test/accuracy_last/Adam 0.001": 99.5,
        }
    )
    assert "not finished" not in found.text
    assert "1 to 20" in found.text  # the rates
    assert list(found.tables["epochs"]["epoch"]) == [*range(1, 21)] * 3
    assert "run" not in found.tables["epochs"]
    assert set(found.figures) == {"rates", "accuracy"}


def test_unfinished_runs_are_named_and_diverged_ones_are_not_among_them():
    diverged = [epoch(1, 11.0), epoch(2, 10.0, loss=float("nan"))]
    found = mnist_cnn.report(
        results({("SGD", 0): twenty(99.0, 98.0)[:3], ("Adam", 0): diverged}), Plan()
    )
    assert "1 runs are not finished" in found.text
    (sgd,) = [line for line in found.text.splitlines() if line.startswith("SGD") and " 3 " in line]
    assert "diverged" not in sgd
    assert any(line.startswith("Adam") and "diverged" in line for line in found.text.splitlines())


def test_cells_of_a_seed_come_before_the_next_and_published_runs_first():
    cells = mnist_cnn.cells(Plan())
    assert [cell["seed"] for cell in cells] == [0] * 6 + [1] * 6
    assert [cell["method"] for cell in cells[:3]] == ["SGD", "Momentum", "Adam"]
    assert len(mnist_cnn.cells(Plan(seeds=3))) == 18
    assert len(mnist_cnn.cells(Plan(scale="quick"))) == 6


def test_published_rates_are_of_each_epoch():
    methods = {method for (method,) in BEST}
    assert methods == {method for (method,) in LAST} == set(RATES) == set(mnist_cnn.ADAPTIVE)
    assert {len(rates) for rates in RATES.values()} == {20}
    # As the notebook prints them: epochs 2, 3, 13 and 20.
    momentum = RATES["Momentum"]
    assert momentum[0] == 0.1
    assert [momentum[n] for n in (1, 2, 12, 19)] == pytest.approx(
        [1.42734, 0.80571, 0.22677, 0.18887], rel=1e-4
    )
