"""Rows, epochs and options of a reproduction; and stores of several machines made one."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from experiments.harness.cells import CellStore, Measured
from experiments.harness.choosing import Option, chosen_cells, decided, row_name
from experiments.harness.reproduction import Plan, Report, Reproduction, run
from lrsearch.errors import InvalidArgumentError

METHODS = ("SGD", "SGD w/ Mom.", "Adam")
OPTIONS = (Option("decay", ("rate", "l2"), "what decays"), Option("fast", ("no", "yes"), "speed"))


class Lab:
    """A reproduction that counts what it measures."""

    def __init__(self, **more):
        self.calls = Counter()
        self.reproduction = Reproduction(
            name="tiny",
            title="a tiny one",
            settings=lambda plan: {"epochs": plan.epochs or 3},
            cells=lambda plan: [
                {"method": method, "rate": rate, "seed": seed}
                for seed in plan.seed_range(full=2)
                for method in METHODS
                for rate in ("0.1", "1")
            ],
            measure=self.measure,
            report=lambda results, plan: Report("done", {"rows": results.rows}),
            by=("method", "rate"),
            **more,
        )

    def measure(self, cell, plan):
        self.calls[row_name(cell), cell["seed"]] += 1
        value = len(cell["method"]) + float(cell["rate"]) + cell["seed"]
        return Measured([{"value": value}], [np.full(2, value, np.float32)])

    def run(self, out, *, minutes=1.0, merge=(), **plan):
        chosen = decided(self.reproduction, Plan(**plan))
        return run(self.reproduction, chosen, out=out, workers=1, minutes=minutes, merge=merge)


# --- rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("SGD 1",), {"SGD 1"}),
        (("sgd*",), {"SGD 0.1", "SGD 1", "SGD w/ Mom. 0.1", "SGD w/ Mom. 1"}),
        (("sgd w/*", "adam 0.?"), {"SGD w/ Mom. 0.1", "SGD w/ Mom. 1", "Adam 0.1"}),
        (("*",), {f"{method} {rate}" for method in METHODS for rate in ("0.1", "1")}),
    ],
)
def test_only_the_rows_that_fit_are_measured_for_every_seed(tmp_path, patterns, names):
    lab = Lab()
    done = lab.run(tmp_path, rows=patterns)
    assert lab.calls == Counter({(name, seed): 1 for name in names for seed in (0, 1)})
    assert (done.measured, done.missing) == (2 * len(names), 0)
    assert set(done.results.rows["method"] + " " + done.results.rows["rate"]) == names


def test_rows_that_were_measured_before_are_not_measured_again(tmp_path):
    lab = Lab()
    lab.run(tmp_path, rows=("SGD*",))
    whole = lab.run(tmp_path)
    assert set(lab.calls.values()) == {1}
    assert len(whole.results.rows) == 12


def test_a_pattern_that_fits_nothing_is_told_with_the_rows():
    with pytest.raises(InvalidArgumentError, match="no row of tiny fits 'Prodigy'") as caught:
        chosen_cells(Lab().reproduction, Plan(rows=("SGD 1", "Prodigy")))
    assert "'SGD 0.1'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cells_that_hold_all_rows_at_once_cannot_be_chosen_from():
    side_by_side = Lab().reproduction.__class__(
        "bank", "", dict, lambda plan: [{"seed": 0}], None, None
    )
    with pytest.raises(InvalidArgumentError, match="side by side"):
        chosen_cells(side_by_side, Plan(rows=("SGD",)))


# --- epochs and options ----------------------------------------------------------------------


def test_other_epochs_are_other_cells(tmp_path):
    lab = Lab(epochs=True)
    lab.run(tmp_path, rows=("Adam 1",), seeds=1)
    lab.run(tmp_path, rows=("Adam 1",), seeds=1, epochs=5)
    lab.run(tmp_path, rows=("Adam 1",), seeds=1, epochs=5)
    assert lab.calls == {("Adam 1", 0): 2}


def test_epochs_mean_nothing_where_trainings_are_not_counted_in_them():
    with pytest.raises(InvalidArgumentError, match="--epochs: tiny is not counted in epochs"):
        decided(Lab().reproduction, Plan(epochs=2))
    with pytest.raises(InvalidArgumentError, match="epochs must be a whole number of at least 1"):
        Plan(epochs=0)


def test_options_have_defaults_and_are_overruled():
    reproduction = Lab(options=OPTIONS).reproduction
    plan = decided(reproduction, Plan())
    assert (plan.option("decay"), plan.option("fast")) == ("rate", "no")
    chosen = decided(reproduction, Plan(options=(("decay", "l2"),)))
    assert (chosen.option("decay"), chosen.option("fast")) == ("l2", "no")
    assert decided(reproduction, chosen) == chosen


@pytest.mark.parametrize(
    ("options", "given", "says"),
    [
        (OPTIONS, ("size", "3"), "has no option 'size'; it has decay=rate|l2; fast=no|yes"),
        (OPTIONS, ("decay", "L2"), "--option decay must be one of 'rate', 'l2', got 'L2'"),
        ((), ("decay", "l2"), "tiny has no option 'decay'; it has none"),
    ],
)
def test_an_option_that_is_not_offered_is_told_with_those_that_are(options, given, says):
    with pytest.raises(InvalidArgumentError) as caught:
        decided(Lab(options=options).reproduction, Plan(options=(given,)))
    assert says in str(caught.value)


# --- several machines ------------------------------------------------------------------------


def split_work(tmp_path):
    """Two machines with a part each; the cells' folders know nothing of each other."""
    one, two = Lab(), Lab()
    one.run(tmp_path / "one", rows=("SGD*",))
    two.run(tmp_path / "two", rows=("Adam*",))
    whole = Lab().run(tmp_path / "whole")
    return one, two, whole


def test_cells_of_several_machines_are_made_one_by_copying_their_files(tmp_path):
    one, _, whole = split_work(tmp_path)
    shutil.copytree(tmp_path / "two" / "cells", tmp_path / "one" / "cells", dirs_exist_ok=True)
    calls = sum(one.calls.values())
    merged = one.run(tmp_path / "one")
    assert sum(one.calls.values()) == calls
    assert (merged.measured, merged.missing) == (0, 0)
    pd.testing.assert_frame_equal(merged.results.rows, whole.results.rows)


def test_merge_takes_the_cells_of_other_folders_and_leaves_those_alone(tmp_path):
    one, _, whole = split_work(tmp_path)
    before = sorted((tmp_path / "two").rglob("*"))
    merged = one.run(tmp_path / "one", merge=(tmp_path / "two",))
    pd.testing.assert_frame_equal(merged.results.rows, whole.results.rows)
    assert merged.measured == 0
    assert sorted((tmp_path / "two").rglob("*")) == before


def test_merge_takes_finished_cells_alone_and_keeps_our_own(tmp_path):
    cell = {"method": "SGD", "seed": 0}
    ours, theirs = (CellStore(tmp_path / name, {}, version="1") for name in ("ours", "theirs"))

    def kept(store, value, *, complete):
        store.keep(cell, Measured([{"value": value}], complete=complete))

    def value():
        return ours.find(cell)[0].rows[0]["value"]

    assert not ours.take(cell, tmp_path / "theirs")  # nothing there
    kept(theirs, 1, complete=False)
    assert not ours.take(cell, tmp_path / "theirs")
    kept(ours, 2, complete=False)
    kept(theirs, 3, complete=True)
    assert ours.take(cell, tmp_path / "theirs")
    assert value() == 3
    kept(theirs, 4, complete=True)
    assert not ours.take(cell, tmp_path / "theirs")
    assert value() == 3
    damaged = next((tmp_path / "theirs").iterdir())
    damaged.write_bytes(b"torn")
    ours.forget([cell])
    assert not ours.take(cell, tmp_path / "theirs")
    assert damaged.read_bytes() == b"torn"  # it is not ours to clear


def test_a_folder_without_cells_is_named(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"--merge: no cells in .*nowhere"):
        Lab().run(tmp_path, merge=(tmp_path / "nowhere",))


def test_a_report_of_what_is_there_needs_no_time(tmp_path):
    lab = Lab()
    lab.run(tmp_path, rows=("Adam*",))
    shown = lab.run(tmp_path, minutes=0.0)
    assert (shown.measured, shown.missing) == (0, 8)
    assert set(shown.results.rows["method"]) == {"Adam"}
