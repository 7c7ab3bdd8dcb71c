"""Methods side by side: the table, its account, its pairing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lrsearch import compare, search
from lrsearch.engine.comparing import summary

MakeLine = Callable[..., Any]
COLUMNS = [
    "method",
    "seed",
    "lr",
    "value",
    "oracle_value",
    "val_loss",
    "train_loss",
    "steps",
    "seconds",
]


def test_one_row_per_method_and_seed_with_the_columns_of_the_contract(make_line: MakeLine) -> None:
    table = compare(make_line(epochs=5).task, methods=("grid", "random"), seeds=2, tracker="none")
    assert list(table.columns) == COLUMNS
    assert table.attrs == {"task": "line", "metric": "mse", "direction": "minimize"}
    assert list(zip(table["method"], table["seed"], strict=True)) == [
        ("grid", 0),
        ("random", 0),
        ("grid", 1),
        ("random", 1),
    ]
    assert (table["oracle_value"] <= table["value"]).all()
    assert (table["seconds"] > 0).all()
    json.dumps(table.attrs)


def test_every_step_of_every_method_is_charged(
    make_line: MakeLine, scale_bound: Callable[[float], None]
) -> None:
    scale_bound(30.0)
    line = make_line()
    table = compare(line.task, seeds=1, start="bound", tracker="none")
    assert list(table["method"]) == ["exptest", "grid"]
    assert table["steps"].sum() == line.spy.forwards
    exptest, grid = table["steps"]
    assert 400 < exptest < grid


def test_a_row_is_what_search_gives_for_that_seed(make_line: MakeLine) -> None:
    table = compare(make_line(epochs=8).task, methods=["tpe"], seeds=3, tracker="none")
    for row in table.to_dict(orient="records"):
        alone = search(make_line(epochs=8).task, method="tpe", seed=row["seed"], tracker="none")
        for column in COLUMNS[2:-1]:
            assert row[column] == getattr(alone, column)


def test_the_same_seed_starts_all_methods_from_the_same_weights(make_line: MakeLine) -> None:
    line = make_line(epochs=3)
    compare(line.task, methods=("exptest", "grid", "random", "tpe"), seeds=2, tracker="none")
    assert len(set(line.spy.starts)) == 2


def test_summary_averages_over_seeds_and_relates_the_steps(make_line: MakeLine) -> None:
    table = compare(make_line(epochs=3).task, seeds=2, tracker="none")
    short = summary(table).set_index("method")
    for method in ("exptest", "grid"):
        rows = table[table["method"] == method]
        assert short.loc[method, "value"] == pytest.approx(rows["value"].mean())
        assert short.loc[method, "value_std"] == pytest.approx(rows["value"].std())
    assert short["share_of_steps"].max() == 1.0
    assert short.loc["exptest", "share_of_steps"] == pytest.approx(
        short.loc["exptest", "steps"] / short.loc["grid", "steps"]
    )


@pytest.mark.parametrize(
    ("bad", "error", "names"),
    [
        ({"methods": ()}, TypeError, "methods"),
        ({"methods": "grid"}, TypeError, "methods"),
        ({"methods": 5}, TypeError, "methods"),
        ({"methods": ("grid", "gird")}, ValueError, "methods"),
        ({"seeds": 0}, ValueError, "seeds"),
        ({"seeds": 1.5}, TypeError, "seeds"),
        ({"seeds": True}, TypeError, "seeds"),
        ({"beta": 2.0}, ValueError, "beta"),
        ({"wokers": 1}, TypeError, "wokers"),
    ],
)
def test_bad_input_names_its_argument(
    make_line: MakeLine, bad: dict[str, Any], error: type[Exception], names: str
) -> None:
    line = make_line()
    with pytest.raises(error, match=names):
        compare(line.task, tracker="none", **bad)
    assert line.spy.forwards == 0
