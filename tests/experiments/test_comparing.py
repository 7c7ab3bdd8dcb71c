"""Published beside measured: against scipy's tests on raw samples."""

from __future__ import annotations

from math import isnan, nan, sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.exptest.published import TABLE1, TABLE3
from experiments.harness.comparing import (
    Published,
    compare,
    comparison_table,
    of_population,
    readable,
)
from experiments.harness.text import titled


def sample(n, mean, sd, seed):
    return np.random.default_rng(seed).normal(mean, sd, n)


def printed(values, unit=0.0):
    return Published(float(np.mean(values)), float(np.std(values, ddof=1)), len(values), unit)


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(2, 12),
    m=st.integers(2, 12),
    gap=st.floats(-3.0, 3.0),
    ratio=st.floats(0.1, 10.0),
    seed=st.integers(0, 10_000),
)
def test_gap_and_p_value_are_those_of_welchs_test_on_the_raw_samples(n, m, gap, ratio, seed):
    published = sample(n, 92.0, 1.0, seed)
    measured = sample(m, 92.0 + gap, ratio, seed + 1)
    expected = stats.ttest_ind(measured, published, equal_var=False)
    found = compare(printed(published), measured.tolist())
    # Means of about 92 in 64 bits: 92 * 2.2e-16 * 12 terms = 2.5e-13, against spreads of about 1.
    assert found["gap"] == pytest.approx(measured.mean() - published.mean(), abs=1e-11)
    assert found["gap"] / found["standard_error"] == pytest.approx(
        expected.statistic, rel=1e-9, abs=1e-9
    )
    assert found["pvalue"] == pytest.approx(expected.pvalue, rel=1e-8)
    assert (found["published_n"], found["measured_n"], found["not_finite"]) == (n, m, 0)
    assert found["measured_sd"] == pytest.approx(stats.tstd(measured), rel=1e-10)


def test_the_order_of_the_samples_is_measured_minus_published():
    found = compare(Published(1.0, 0.5, 4), [3.0, 4.0, 5.0])
    assert found["gap"] == 3.0
    assert found["standard_error"] == pytest.approx(sqrt(0.25 / 4 + 1.0 / 3))


def test_a_deviation_of_the_population_becomes_that_of_the_sample():
    values = sample(5, 0.3, 0.02, 0)
    figure = of_population(float(values.mean()), float(np.std(values)), 5, unit=0.01)
    assert figure.sd == pytest.approx(float(np.std(values, ddof=1)), rel=1e-12)
    assert (figure.n, figure.unit) == (5, 0.01)


def test_rounding_of_what_was_printed_is_part_of_the_standard_error_and_not_of_the_p_value():
    values = [1.0, 2.0, 4.0]
    exact = compare(Published(2.0, 1.0, 5), values)
    rounded = compare(Published(2.0, 1.0, 5, unit=0.6), values)
    # A value rounded to a unit is off by a uniform error, of variance unit^2 / 12.
    uniform = stats.uniform(-0.3, 0.6).var()
    assert rounded["standard_error"] ** 2 == pytest.approx(exact["standard_error"] ** 2 + uniform)
    assert rounded["pvalue"] == exact["pvalue"]


def test_figures_without_spread_are_told_apart_by_the_rounding_alone():
    found = compare(Published(1.31, 0.0, 5, unit=0.01), [1.3104] * 3)
    assert found["standard_error"] == pytest.approx(0.01 / sqrt(12.0))
    assert isnan(found["pvalue"])
    identical = compare(Published(1.31, 0.0, 5), [1.31] * 3)
    assert isnan(identical["standard_error"])


def test_values_that_are_not_finite_are_left_out_and_counted():
    clean, dirty = [1.0, 2.0, 4.0], [1.0, nan, 2.0, float("inf"), 4.0, -float("inf")]
    published = Published(2.0, 1.0, 5)
    found = compare(published, dirty)
    assert found == {**compare(published, clean), "not_finite": 3}


@pytest.mark.parametrize("values", [[], [nan, nan]])
def test_where_nothing_finite_was_measured_there_is_no_gap(values):
    found = compare(Published(2.0, 1.0, 5), values)
    assert (found["measured_n"], found["not_finite"]) == (0, len(values))
    for key in ("measured", "measured_sd", "gap", "standard_error", "pvalue"):
        assert isnan(found[key])


@pytest.mark.parametrize(
    ("published", "values"),
    [(Published(2.0, n=5), [1.0, 2.0]), (Published(2.0, 1.0, 5), [1.0]), (None, [1.0, 2.0])],
)
def test_an_unknown_deviation_gives_no_test(published, values):
    found = compare(published, values)
    assert found["measured"] == np.mean(values)
    assert isnan(found["standard_error"])
    assert isnan(found["pvalue"])
    assert isnan(found["gap"]) == (published is None)


def test_with_no_figure_what_was_measured_still_stands():
    found = compare(None, [1.0, 3.0])
    assert (found["measured"], found["measured_n"], found["published_n"]) == (2.0, 2, None)
    assert found["measured_sd"] == pytest.approx(sqrt(2.0))


# --- tables ----------------------------------------------------------------------------------

RUNS = pd.DataFrame(
    [
        {"method": method, "rate": rate, "accuracy": value}
        for method, rate, values in [
            ("SGD", "1", (90.0, 91.0, 92.0)),
            ("Adam", "0.1", (80.0, 80.1, 80.2)),
            ("Adam", "1", (70.0, nan, 72.0)),
            ("Own", "own", (1.0, 2.0, 3.0)),
        ]
        for value in values
    ]
)
PUBLISHED = {
    ("Adam", "0.1"): Published(90.0, 0.1, 5),
    ("Adam", "1"): Published(71.0, 1.0, 5),
    ("SGD", "1"): Published(91.1, 1.0, 5),
    ("RMSprop", "1"): Published(50.0, 1.0, 5),
}
BY = ("method", "rate")


def table(order=None):
    return comparison_table(RUNS, PUBLISHED, by=BY, value="accuracy", order=order)


def test_groups_come_as_the_runs_do():
    keys = list(table()[["method", "rate"]].itertuples(index=False, name=None))
    assert keys == [("SGD", "1"), ("Adam", "0.1"), ("Adam", "1"), ("Own", "own")]


def test_a_given_order_is_kept_and_groups_without_runs_are_left_out():
    keys = list(table(order=PUBLISHED)[["method", "rate"]].itertuples(index=False, name=None))
    assert keys == [("Adam", "0.1"), ("Adam", "1"), ("SGD", "1")]


def test_each_line_is_the_comparison_of_its_group():
    for row in table().to_dict("records"):
        key = (row["method"], row["rate"])
        group = RUNS[(RUNS["method"] == key[0]) & (RUNS["rate"] == key[1])]
        for name, value in compare(PUBLISHED.get(key), group["accuracy"].tolist()).items():
            if value is None or value != value:
                assert pd.isna(row[name])
            else:
                assert row[name] == value


def test_gaps_beyond_two_standard_errors_are_flagged_and_no_others():
    flagged = table().set_index(list(BY))["flagged"].to_dict()
    assert flagged == {
        ("SGD", "1"): False,
        ("Adam", "0.1"): True,
        ("Adam", "1"): False,
        ("Own", "own"): False,
    }


@pytest.mark.parametrize(("gap", "flag"), [(1.99, False), (2.01, True), (-2.01, True)])
def test_the_flag_turns_at_two_standard_errors(gap, flag):
    error = compare(Published(0.0, 1.0, 4), [-1.0, 0.0, 1.0])["standard_error"]
    runs = pd.DataFrame({"a": ["x"] * 3, "v": [gap * error + d for d in (-1.0, 0.0, 1.0)]})
    found = comparison_table(runs, {("x",): Published(0.0, 1.0, 4)}, by=("a",), value="v")
    assert found["flagged"].tolist() == [flag]


def test_numbers_name_groups_too():
    runs = pd.DataFrame({"alpha": [0.05, 0.1, 0.05], "v": [1.0, 2.0, 3.0]})
    published = {(0.1,): Published(2.0, n=5), (0.05,): Published(2.5, n=5)}
    found = comparison_table(runs, published, by=("alpha",), value="v", order=published)
    assert found["alpha"].tolist() == [0.1, 0.05]
    assert found["gap"].tolist() == [0.0, -0.5]


def test_no_runs_give_an_empty_table_and_no_lines():
    empty = comparison_table(RUNS[:0], PUBLISHED, by=BY, value="accuracy")
    assert len(empty) == 0
    assert readable(empty, by=BY, digits=2) == []


# --- texts -----------------------------------------------------------------------------------


def test_texts_hold_mean_deviation_and_runs():
    lines = readable(table(), by=BY, digits=1)
    assert lines[1] == {
        "method": "Adam",
        "rate": "0.1",
        "published": "90.0 ± 0.1 (5)",
        "measured": "80.1 ± 0.1 (3)",
        "not finite": "",
        "gap": "-9.9",
        "in s.e.": f"{-9.9 / sqrt(0.01 / 5 + 0.01 / 3):+.1f}",
        "p": f"{stats.ttest_ind_from_stats(80.1, 0.1, 3, 90.0, 0.1, 5, False).pvalue:.2g}",
        "": "beyond 2 s.e.",
    }
    assert (lines[2]["measured"], lines[2]["not finite"]) == ("71.0 ± 1.4 (2)", 1)
    assert lines[3]["published"] == "-"
    assert [lines[3][name] for name in ("gap", "in s.e.", "p", "")] == ["-", "-", "-", ""]


def test_a_title_counts_the_tested_gaps_and_says_that_a_cut_means_nothing():
    text = titled("A table", table(), by=BY, digits=1)
    assert text.startswith("A table\n\n")
    assert "1 of 3 gaps beyond 2 standard errors" in text
    assert "quick cut" not in text
    assert "quick cut" in titled("A table", table(), by=BY, digits=1, cut=True)


# --- what was printed ------------------------------------------------------------------------


def test_published_tables_hold_every_printed_figure():
    assert len(TABLE1) == len(TABLE3) == 4 * 5 + 1
    # [E] Table 1, MNIST, Adam at 0.01 of the bound; Table 3, SGD at the bound, one run dropped.
    figure = TABLE1["Adam", "0.01"]
    assert (figure.mean, figure.n, figure.unit) == (92.35, 5, 0.01)
    assert figure.sd == pytest.approx(0.06 * sqrt(5 / 4))
    figure = TABLE3["SGD", "1"]
    assert (figure.mean, figure.n) == (2.0047, 4)
    assert figure.sd == pytest.approx(1.2023 * sqrt(4 / 3))
