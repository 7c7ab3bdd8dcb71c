"""Augmentation: exact on whole pixels and right angles, scipy's elsewhere, within its ranges."""

from __future__ import annotations

from math import cos, pi, radians, sin

import numpy as np
import pytest
import torch
from scipy import ndimage

from experiments.lipschitz.augmentation import Moves, Ranges, draw_moves, moved

# float32 places: an error of 1e-6 of a half side times an image's largest step between pixels (1).
CLOSE = {"rtol": 0.0, "atol": 2e-5}


def images(rows=1, side=28, seed=0):
    return torch.rand(rows, 1, side, side, generator=torch.Generator().manual_seed(seed))


def moves(rows=1, *, shift=(0.0, 0.0), factor=(1.0, 1.0), degrees=0.0):
    return Moves(
        torch.tensor([shift]).expand(rows, 2),
        torch.tensor([factor]).expand(rows, 2),
        torch.full((rows,), radians(degrees)),
    )


def by_scipy(image, shift, factor, angle):
    """p_in = R (shift + factor * p_out) around the centre; scipy's axes are (y, x)."""
    linear = np.array(
        [
            [cos(angle) * factor[1], sin(angle) * factor[0]],
            [-sin(angle) * factor[1], cos(angle) * factor[0]],
        ]
    )
    rotation = np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])
    centre = (np.array(image.shape) - 1) / 2
    offset = centre + rotation @ np.array([shift[1], shift[0]]) - linear @ centre
    return ndimage.affine_transform(
        image.astype(float), linear, offset=offset, order=1, mode="nearest"
    )


def test_no_move_changes_nothing():
    given = images(3)
    torch.testing.assert_close(moved(given, moves(3)), given, **CLOSE)
    none = draw_moves(3, 28, Ranges(0.0, 0.0, 0.0), torch.Generator())
    torch.testing.assert_close(moved(given, none), given, **CLOSE)


@pytest.mark.parametrize("shift", [(2.0, 0.0), (0.0, -3.0), (-1.0, 2.0)])
def test_whole_pixels_shift_and_the_edge_goes_on(shift):
    given = images(2)
    x = (torch.arange(28) + int(shift[0])).clamp(0, 27)
    y = (torch.arange(28) + int(shift[1])).clamp(0, 27)
    expected = given[:, :, y][:, :, :, x]
    torch.testing.assert_close(moved(given, moves(2, shift=shift)), expected, **CLOSE)


def test_right_angles_are_exact():
    given = images(2)
    for quarters in (1, 2, 3):
        expected = torch.rot90(given, quarters, (2, 3))
        torch.testing.assert_close(
            moved(given, moves(2, degrees=90.0 * quarters)), expected, **CLOSE
        )


@pytest.mark.parametrize("degrees", [15.0, -7.0])
def test_a_rotation_is_scipys(degrees):
    given = images(side=27)
    expected = ndimage.rotate(
        given[0, 0].numpy().astype(float), degrees, reshape=False, order=1, mode="nearest"
    )
    found = moved(given, moves(degrees=degrees))[0, 0].numpy()
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_a_factor_of_a_half_doubles_the_picture():
    given = torch.zeros(1, 1, 9, 9)
    given[0, 0, 4, 4:7] = 1.0  # from the centre to the right
    found = moved(given, moves(factor=(0.5, 1.0)))
    assert found[0, 0, 4].tolist() == pytest.approx([0, 0, 0, 0.5, 1, 1, 1, 1, 1])


def test_random_moves_are_scipys():
    given = images(40)
    drawn = draw_moves(40, 28, Ranges(), torch.Generator().manual_seed(5))
    found = moved(given, drawn).numpy()
    for row in range(40):
        expected = by_scipy(
            given[row, 0].numpy(),
            drawn.shift[row].tolist(),
            drawn.factor[row].tolist(),
            float(drawn.angle[row]),
        )
        np.testing.assert_allclose(found[row, 0], expected, **CLOSE)


def test_each_image_has_its_own_move_and_channels_share_it():
    given = images(2).expand(2, 3, 28, 28)
    both = Moves(
        torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.ones(2, 2), torch.tensor([0.0, pi / 2])
    )
    found = moved(given, both)
    for row in range(2):
        one = Moves(both.shift[row : row + 1], both.factor[:1], both.angle[row : row + 1])
        alone = moved(given[row : row + 1, :1], one)
        torch.testing.assert_close(found[row : row + 1], alone.expand(1, 3, 28, 28), **CLOSE)


def test_draws_fill_their_ranges_and_no_more():
    drawn = draw_moves(20_000, 28, Ranges(), torch.Generator().manual_seed(0))
    assert drawn.shift.shape == drawn.factor.shape == (20_000, 2)
    for values, low, high in (
        (drawn.shift, -2.8, 2.8),
        (drawn.factor, 0.9, 1.1),
        (drawn.angle, -radians(15), radians(15)),
    ):
        width = high - low
        assert low - 1e-6 <= float(values.min()) < low + 0.01 * width
        assert high - 0.01 * width < float(values.max()) <= high + 1e-6
        # The mean of a uniform variable; 5 deviations of 20 000 draws.
        assert abs(float(values.mean()) - (low + high) / 2) < 5 * width / (12 * 20_000) ** 0.5
    # Both axes, and all three kinds, are drawn independently.
    columns = torch.cat([drawn.shift, drawn.factor, drawn.angle[:, None]], 1)
    correlations = torch.corrcoef(columns.T) - torch.eye(5)
    assert float(correlations.abs().max()) < 5 / 20_000**0.5


def test_a_seed_tells_the_draws():
    def drawn(seed):
        return draw_moves(5, 28, Ranges(), torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1).shift, drawn(1).shift)
    assert torch.equal(drawn(1).angle, drawn(1).angle)
    assert not torch.equal(drawn(1).shift, drawn(2).shift)


def test_moved_pixels_stay_between_those_that_were_there():
    given = images(50)
    found = moved(given, draw_moves(50, 28, Ranges(), torch.Generator().manual_seed(2)))
    assert float(given.min()) - 1e-6 <= float(found.min())
    assert float(found.max()) <= float(given.max()) + 1e-6
