"""A panel's file: what it says, what is refused in one line, its cells and their order."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest
import yaml

from experiments.bench.methods import check_methods, own_updates
from experiments.bench.panel import OWN, cell_title, make_panel, read_panel
from experiments.bench.running import PANEL
from experiments.bench.tasks import BASES, SHIFTS, shifts_of
from lrsearch.errors import InvalidArgumentError

SMALL = {
    "seeds": 3,
    "optimizers": ["sgd", "adam"],
    "shifts": ["none", "batch 8", "class imbalance"],
    "bases": {"wine-linear": None, "diabetes-linear": None, "digits-mlp": {"optimizers": ["adam"]}},
    "reference": "exptest",
    "methods": {
        "exptest": {"kind": "search", "options": {"method": "exptest", "alpha": 0.05}},
        "bank": {"kind": "bank"},
        "grid": {"kind": "replay"},
        "default": {"kind": "peer", "optimizers": ["sgd"]},
        "prodigy": {"kind": "peer", "name": "Prodigy"},
    },
    "ablations": {"timid": {"of": "exptest", "options": {"alpha": 0.5}}},
    "quick": {"seeds": 1, "bases": ["wine-linear"], "methods": ["bank", "exptest"]},
}


def changed(key, value):
    """The small panel with the value at a dotted key; None removes it."""
    content = copy.deepcopy(SMALL)
    *path, last = key.split(".")
    place = content
    for name in path:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return content


def test_the_checkouts_own_panel_is_what_was_promised():
    panel = read_panel(PANEL)
    check_methods(panel)
    assert panel.seeds >= 5
    assert set(panel.bases) == set(BASES)
    assert {shift for base in panel.bases.values() for shift in base.shifts} == set(SHIFTS)
    for name, base in panel.bases.items():
        assert base.shifts == shifts_of(name)
    assert panel.bases["digits-transformer"].optimizers == ("adam",)
    quick = panel.cut()
    assert quick.seeds < panel.seeds
    full = {cell_title(cell) for cell in panel.cells(own_updates())}
    assert {cell_title(cell) for cell in quick.cells(own_updates())} < full


def test_each_method_is_run_on_each_task_with_its_optimizers():
    cells = make_panel(SMALL).cells(own_updates())
    assert all(cell["seeds"] == 3 for cell in cells)
    found = Counter((cell["method"], cell["base"], cell["optimizer"]) for cell in cells)
    per_shift = {"wine-linear": 3, "diabetes-linear": 2, "digits-mlp": 3}  # no classes in diabetes
    expected = {}
    for base, shifts in per_shift.items():
        for optimizer in ["adam"] if base == "digits-mlp" else ["sgd", "adam"]:
            for method in ("bank", "exptest", "timid"):
                expected[method, base, optimizer] = shifts
        expected["prodigy", base, OWN] = shifts  # its own update: once a task
        if base != "digits-mlp":
            expected["default", base, "sgd"] = shifts
    assert found == expected  # nothing is measured for a replay


def test_an_interrupted_panel_is_balanced_over_bases_and_shifts():
    cells = make_panel(SMALL).cells(own_updates())
    tasks = list(dict.fromkeys((cell["base"], cell["shift"]) for cell in cells))
    assert tasks[:3] == [
        ("wine-linear", "none"),
        ("diabetes-linear", "batch 8"),
        ("digits-mlp", "class imbalance"),
    ]
    # A task's cells stand together, its banks first.
    first = [cell["method"] for cell in cells if cell["base"] == "wine-linear"][:7]
    assert first == ["bank", "bank", "default", "prodigy", "exptest", "exptest", "timid"]


def test_an_ablation_is_its_method_with_one_option_changed():
    cells = make_panel(SMALL).cells()
    options = {cell["method"]: json.loads(cell["options"]) for cell in cells}
    assert options["exptest"] == {"method": "exptest", "alpha": 0.05}
    assert options["timid"] == {"method": "exptest", "alpha": 0.5}


def test_the_quick_cut_is_what_the_file_says():
    cells = make_panel(SMALL).cut().cells()
    assert {(cell["base"], cell["seeds"]) for cell in cells} == {("wine-linear", 1)}
    assert {cell["method"] for cell in cells} == {"bank", "exptest"}
    assert {cell["shift"] for cell in cells} == set(SMALL["shifts"])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("seeds", 0, "seeds must be a whole number of at least 1, got 0"),
        ("seeds", True, "seeds must be"),
        ("seeds", None, "seeds is missing"),
        ("speed", 9, "unknown key 'speed'"),
        ("optimizers", ["sgd", "lion"], "optimizers must be one of sgd, .*got 'lion'"),
        ("optimizers", ["sgd", "sgd"], "optimizers holds a name twice"),
        ("optimizers", "sgd", "optimizers must be a list of names"),
        ("shifts", ["upside down"], "shifts must be one of .*got 'upside down'"),
        ("bases.iris", {}, "bases holds the unknown key 'iris'"),
        ("bases.wine-linear", {"optimizer": ["sgd"]}, "bases.wine-linear .*'optimizer'"),
        ("bases.wine-linear", {"shifts": ["raw inputs"]}, "bases.wine-linear.shifts must be one"),
        ("methods.grid", {"kind": "grid"}, "methods.grid.kind must be one of bank.*got 'grid'"),
        ("methods.grid", {"name": "grid"}, "methods.grid.kind must be one of .*got None"),
        ("methods.grid", {"kind": "bank"}, "exactly one of kind 'bank', got 2"),
        ("methods.default.optimizers", ["rmsprop"], "methods.default.optimizers must be one of"),
        ("ablations.timid.of", "prodigy", "ablations.timid.of must be one of exptest"),
        ("ablations.timid.options", {"alpha": 0.1, "beta": 0.1}, "change exactly one option"),
        ("ablations.grid", {"of": "exptest"}, "ablations.grid: a method has that name"),
        ("reference", "bank", "reference must be one of exptest, "),
        ("quick.methods", ["exptest"], r"quick.methods must hold the bank .*\['bank'\]"),
        ("quick.shifts", ["raw inputs"], "quick.shifts must be one of none"),
    ],
)
def test_what_is_not_allowed_is_refused_in_a_line_that_names_the_key(key, value, told):
    with pytest.raises(InvalidArgumentError, match=told) as refused:
        make_panel(changed(key, value))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("methods.grid.name", "square", "methods.grid.name must be one of grid, .*'square'"),
        ("methods.prodigy.name", "Genius", "methods.prodigy.name must be one of .*'Genius'"),
        ("methods.exptest.options", {"gamma": 1}, "methods.exptest.options .*'gamma'"),
        ("methods.exptest.options", {"seed": 1}, "methods.exptest.options .*'seed'"),
        ("ablations.timid.options", {"gamma": 1}, "ablations.timid.options .*'gamma'"),
        ("methods.grid.options", {"trials": 3}, "methods.grid.options .*'trials'"),
        ("methods.default.options", {"lr": 3}, "methods.default.options .*'lr'.*none"),
    ],
)
def test_names_and_options_are_those_of_the_registries(key, value, told):
    panel = make_panel(changed(key, value))
    with pytest.raises(InvalidArgumentError, match=told):
        check_methods(panel)


@pytest.mark.parametrize("text", ["seeds: [", "- a list", "3"])
def test_a_file_that_is_no_panel_is_named(tmp_path, text):
    path = tmp_path / "panel.yaml"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=r"--panel: .*panel\.yaml") as refused:
        read_panel(path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"--panel: cannot read .*missing\.yaml"):
        read_panel(tmp_path / "missing.yaml")


def test_a_file_says_what_its_content_does(tmp_path):
    path = tmp_path / "panel.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    assert read_panel(path) == make_panel(SMALL)
