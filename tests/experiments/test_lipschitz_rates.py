"""[L]'s printed learning rates, from the data, and the data as its experiments take them."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest

from experiments.lipschitz import data, rates
from experiments.lipschitz.descent import Logistic, Path, least_squares, trace
from experiments.lipschitz.published import (
    COVERTYPE_ROWS,
    FIGURE1,
    FIGURE1_EPOCHS,
    RATES2,
    TABLE1,
)
from lrsearch.errors import InvalidArgumentError, MissingDataError

BESIDE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = pathlib.Path(os.environ.get("LRSEARCH_DATA", BESIDE))


def load(name):
    try:
        return data.load(name, str(DATA))
    except (MissingDataError, ValueError):
        pytest.skip(f"no data of {name}: set LRSEARCH_DATA to their folder")


def test_breast_cancers_rate_is_hit_to_the_last_digit():
    inputs = data.scaled(data.load("breast-cancer", None).inputs)
    found = rates.classes_rate(inputs, 2)
    assert found == pytest.approx(TABLE1["breast-cancer"].notebook_rate, rel=1e-13)
    assert round(found, 2) == TABLE1["breast-cancer"].rate == 4280.23


@pytest.mark.parametrize("name", ["boston", "california", "energy"])
def test_least_squares_rates_are_hit_to_the_last_digit(name):
    raw, targets = load(name)
    inputs = rates.inputs_of(name, raw)
    found = rates.least_squares_rate(inputs, targets, rates.notebook_k(name, raw))
    assert found == pytest.approx(TABLE1[name].notebook_rate, rel=1e-13)
    printed = abs(found - TABLE1[name].rate) <= TABLE1[name].unit
    assert printed == (name != "boston")  # whose printed rate is a slip


def test_covertypes_rate_is_hit_but_for_the_samples_error():
    raw, _ = load("covertype")
    found = rates.classes_rate(data.scaled(raw), 2) * (COVERTYPE_ROWS / len(raw)) ** 1.5
    assert found == pytest.approx(RATES2["Cover Type"], rel=1e-3)


def test_the_binary_rate_goes_as_the_rows_to_the_power_of_one_and_a_half():
    raw = np.random.default_rng(0).gamma(1.0, size=(30, 4))
    once, thrice = (rates.classes_rate(data.scaled(np.tile(raw, (n, 1))), 2) for n in (1, 3))
    assert thrice == pytest.approx(once * 3**1.5, rel=1e-12)


def test_printed_epochs_imply_the_rates_but_for_bostons():
    for name in ("energy", "news"):
        assert TABLE1[name].implied == pytest.approx(TABLE1[name].rate, rel=2e-3)
    boston = TABLE1["boston"]
    assert boston.implied == pytest.approx(boston.notebook_rate, rel=1e-3)
    assert boston.implied < 0.9 * boston.rate


def test_figure_1_is_hit_point_by_point():
    raw, targets = load("california")
    inputs = data.scaled(raw)
    weights = np.random.default_rng(0).standard_normal((inputs.shape[1], 5))
    path = Path(least_squares(inputs, targets), weights, TABLE1["california"].notebook_rate)
    for epoch, loss in FIGURE1.items():
        np.testing.assert_allclose(path.losses(epoch - 1), loss, atol=1e-3)  # unknown weights
    assert np.all(np.abs(path.epochs_to(1.0, most=10_000) - FIGURE1_EPOCHS) <= 2)


def test_breast_cancers_accuracy_is_hit_after_the_notebooks_hundred_epochs():
    raw, targets = data.load("breast-cancer", None)
    model = Logistic(data.scaled(raw), targets)
    weights = np.random.default_rng(0).standard_normal((31, 5))
    losses, at = trace(
        model, weights, TABLE1["breast-cancer"].rate, epochs=100, every=1, stops=(100,)
    )
    np.testing.assert_allclose(losses[:, 99], 0.46770330, atol=2e-3)
    np.testing.assert_allclose(model.accuracy(at[100]), 90.51, atol=0.2)


def test_random_splits_give_the_rates_of_iris_and_digits():
    for published in (TABLE1["iris"].rate, RATES2["Iris"]):
        line = rates._split_line("iris", published)
        assert line["verdict"].startswith("within")
    assert rates._split_line("digits", RATES2["Digits"])["verdict"].startswith("within")
    assert rates._split_line("digits", 0.7)["verdict"] == "not hit"


def test_four_single_sums_lose_what_double_ones_keep():
    values = np.ones((5_000, 4))
    assert rates.four_sums(values) == pytest.approx(float(np.linalg.norm(values)), rel=1e-12)
    values[0] = 1e4  # beside its square, 1e8, a square of 1 is less than half a unit
    assert rates.four_sums(values) == 2e4 < float(np.linalg.norm(values))
    assert np.isnan(rates.four_sums(values[:1, :3]))


# --- data ------------------------------------------------------------------------------------


def test_scaled_columns_sum_to_one_behind_their_bias():
    raw = np.random.default_rng(1).gamma(1.0, size=(20, 3))
    found = data.scaled(raw, bias=2)
    assert found.shape == (20, 5)
    np.testing.assert_allclose(found.sum(axis=0), 1.0)
    np.testing.assert_allclose(found[:, :2], 1 / 20)
    np.testing.assert_allclose(found[:, 2:], raw / raw.sum(axis=0))


def test_a_feature_that_sums_to_zero_is_named():
    with pytest.raises(InvalidArgumentError, match="column 2"):
        data.scaled(np.array([[1.0, 1.0], [2.0, -1.0]]))


@pytest.mark.parametrize("name", sorted(data.FILES))
def test_missing_files_are_named(tmp_path, monkeypatch, name):
    monkeypatch.delenv("LRSEARCH_DATA", raising=False)
    with pytest.raises(MissingDataError, match=data.FILES[name][0]):
        data.load(name, str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04broken"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "boston_housing.npz").write_bytes(content)
    with pytest.raises(MissingDataError, match=r"boston_housing\.npz"):
        data.load("boston", str(tmp_path))


def test_an_unknown_set_is_refused():
    with pytest.raises(InvalidArgumentError, match="dataset"):
        data.load("wine", None)


def test_shapes_are_those_of_the_notebooks():
    for name, shape in (("news", (9874, 59)), ("covertype", (79222, 9)), ("energy", (768, 8))):
        inputs, targets = load(name)
        assert inputs.shape == shape
        assert targets.shape == shape[:1]
    assert set(np.unique(load("covertype").targets)) == {0.0, 1.0}
    assert load("energy").targets.mean() == pytest.approx(22.307195, abs=1e-6)  # heating
