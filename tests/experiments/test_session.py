"""What a reproduction leaves in a tracker, told to one that only listens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.harness.reproduction import Plan, Report, Reproduced, Reproduction, Results
from experiments.harness.session import record, reproduce
from lrsearch.errors import InvalidArgumentError


class Listener:
    """A run that remembers everything."""

    run_id, tracking_uri = "1", "memory"

    def __init__(self, name="", tags=None):
        self.name, self.tags, self.params = name, dict(tags or {}), {}
        self.metrics, self.tables, self.children, self.status = [], {}, [], None

    def log_metrics(self, metrics, step):
        self.metrics += [(key, step, value) for key, value in metrics.items()]

    def log_params(self, params):
        self.params |= params

    def set_tags(self, tags):
        self.tags |= tags

    def log_table(self, name, table):
        self.tables[name] = table

    def log_figure(self, name, figure):
        self.tables[name] = figure

    def child(self, name, *, tags=None):
        self.children.append(Listener(name, tags))
        return self.children[-1]

    def finish(self, status):
        assert self.status is None
        self.status = status

    def history(self, key):
        return [(step, value) for name, step, value in self.metrics if name == key]


def recorded(rows, curves, epochs=()):
    """A run whose rows, curves and epochs are these."""
    frame = pd.DataFrame(rows)
    reproduction = Reproduction(
        "tiny",
        "a tiny one",
        lambda plan: {"rows": 7},
        lambda plan: [],
        None,
        None,
        by=("method", "rate"),
    )
    report = Report("", {"comparison": pd.DataFrame({"a": [1]})}, {}, {"test/accuracy/x": 0.5})
    results = Results(frame, curves, pd.DataFrame(epochs))
    reproduced = Reproduced(report, results, Path(), "1+b", ["1+a", "1+b"], 0, 0)
    listener = Listener()
    record(reproduction, reproduced, Plan(scale="quick"), listener)
    return listener


ROW = {"method": "SGD", "rate": "0.1", "seed": 0, "lr": 0.02, "accuracy": 91.0, "curve": 0}


def test_the_parent_has_settings_versions_summary_and_tables():
    parent = recorded([ROW, {**ROW, "seed": 3, "curve": 1}], [np.ones(5), np.ones(5)])
    assert parent.params == {"rows": 7, "scale": "quick", "seeds": "0,3"}
    assert parent.tags["lrsearch.versions"] == "1+a, 1+b"
    assert parent.history("test/accuracy/x") == [(0, 0.5)]
    assert set(parent.tables) == {"comparison", "runs"}
    assert "curve" not in parent.tables["runs"]
    assert len(parent.children) == 2


def test_a_run_has_its_method_rate_seed_and_measurements():
    (child,) = recorded([ROW], [np.linspace(2.0, 1.0, 5)]).children
    assert child.name == "SGD 0.1 seed 0"
    assert child.tags["lrsearch.method"] == "SGD"
    assert {key: str(value) for key, value in child.params.items()} == {
        "method": "SGD",
        "rate": "0.1",
        "seed": "0",
        "lr": "0.02",
    }
    assert child.history("test/accuracy") == [(4, 91.0)]
    assert child.history("train/loss") == [(0, 2.0), (1, 1.75), (2, 1.5), (3, 1.25), (4, 1.0)]
    assert child.status == "complete"


@pytest.mark.parametrize("last", [np.nan, np.inf])
def test_a_run_that_ends_without_a_finite_loss_has_failed(last):
    rows = [ROW, {**ROW, "curve": 1}]
    sound, broken = recorded(rows, [np.ones(3), np.array([1.0, 9.0, last])]).children
    assert (sound.status, broken.status) == ("complete", "failed")


def test_a_first_rung_that_exploded_is_no_failure_of_the_run():
    (child,) = recorded([ROW], [np.array([5.0, 1e17, np.inf, 5.0, 0.3])]).children
    assert child.status == "complete"


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    curve = np.linspace(2.0, 1.0, 10_001)
    history = recorded([ROW], [curve]).children[0].history("train/loss")
    steps = [step for step, _ in history]
    assert len(steps) == 300
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, 10_000)
    assert all(value == curve[step] for step, value in history)


def test_a_rate_of_the_optimizers_own_is_not_recorded_as_a_number():
    rows = [ROW, {**ROW, "method": "Adadelta", "rate": "own", "lr": None, "curve": 1}]
    _, own = recorded(rows, [np.ones(3), np.ones(3)]).children
    assert "lr" not in own.params
    assert own.history("lr") == []


def test_epochs_are_a_table_of_their_run():
    epochs = [{"run": run, "epoch": epoch} for run, epoch in ((0, 1), (2, 1), (2, 2))]
    rows = [{**ROW, "curve": number} for number in range(3)]
    one, none, two = recorded(rows, [np.ones(3)] * 3, epochs).children
    assert one.tables["epochs"].to_dict("list") == {"epoch": [1]}
    assert two.tables["epochs"].to_dict("list") == {"epoch": [1, 2]}
    assert none.tables == {}


def test_rows_without_a_curve_are_in_the_table_alone():
    parent = recorded([{**ROW, "curve": None}], [])
    assert parent.children == []
    assert len(parent.tables["runs"]) == 1


def test_an_unknown_name_opens_no_run(monkeypatch):
    monkeypatch.setattr(
        "experiments.harness.session.find_tracker", lambda name: pytest.fail("a run was opened")
    )
    with pytest.raises(InvalidArgumentError, match="'exptest-table9'"):
        reproduce("exptest-table9", Plan())
