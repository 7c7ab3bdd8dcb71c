"""Eq. 52 and Eq. 53."""

from math import inf, nan, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.stats import window_correction, window_length


@pytest.mark.parametrize(
    ("initial_loss", "lr", "steps"),
    [
        (2.3026, 0.0494, 49),  # MNIST at its bound: twice 24.25, rounded
        (2.3026, 0.5, 5),
        (1.0, 1.0, 1),
        (1.0, 1.04, 1),
        (1.0, 3.0, 0),
        (0.0, 0.1, 0),
        (-2.3026, 0.0494, 49),
        (5.6, 1e-6, 5826913),
    ],
)
def test_lengths_of_eq_52(initial_loss, lr, steps):
    # 2 sqrt(2) / e = 1.04052019..., `bc -l`: 2*sqrt(2)/e(1)
    assert window_length(initial_loss, lr) == steps


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e3))
def test_a_lower_rate_never_has_a_shorter_window(initial_loss, lr):
    assert window_length(initial_loss, 0.33 * lr) >= window_length(initial_loss, lr)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(5e-324, 1.7e308))
def test_every_finite_start_has_a_length(initial_loss, lr):
    length = window_length(initial_loss, lr)
    assert isinstance(length, int)
    assert 0 <= length <= 2**62


@pytest.mark.parametrize("lr", [0.0, -0.1, inf, nan])
def test_a_rate_must_be_positive_and_finite(lr):
    with pytest.raises(InvalidArgumentError, match="lr must be a positive finite number, got"):
        window_length(1.0, lr)


@pytest.mark.parametrize("loss", [nan, inf, -inf])
def test_an_initial_loss_must_be_finite(loss):
    with pytest.raises(InvalidArgumentError, match="initial_loss must be finite, got"):
        window_length(loss, 0.1)


def test_texts_are_not_numbers():
    with pytest.raises(InvalidTypeError, match="initial_loss must be a number, got 'x'"):
        window_length("x", 0.1)
    with pytest.raises(InvalidTypeError, match="norm_of_sum must be a number"):
        window_correction(1.0, None)


@pytest.mark.parametrize(
    ("path", "displacement", "expected"),
    [
        (10.0, 4.0, 2.5),
        (pi, pi, 1.0),
        (1.0, 1.0 + 1e-12, 1.0),  # rounding may not shorten a window
        (3.0, 0.0, inf),
        (0.0, 0.0, 1.0),
        (nan, 1.0, 1.0),
        (inf, 1.0, 1.0),
        (1.0, inf, 1.0),
    ],
)
def test_corrections_of_eq_53(path, displacement, expected):
    assert window_correction(path, displacement) == expected


@pytest.mark.parametrize("norms", [(-1.0, 1.0), (1.0, -1.0)])
def test_norms_are_not_negative(norms):
    with pytest.raises(InvalidArgumentError, match="norms must not be negative, got"):
        window_correction(*norms)
