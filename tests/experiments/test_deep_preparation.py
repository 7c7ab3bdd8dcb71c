"""From bytes to what a deep network is fed: means, moves, flips."""

from __future__ import annotations

import torch
from cifar_files import images as made

from experiments.deep.preparation import SHIFTS_AND_FLIPS, Preparation, centred, standardised
from experiments.lipschitz.augmentation import Ranges, draw_moves, moved

IMAGES = torch.tensor(made(50, 10, 0)[0])


def test_standardised_channels_have_mean_0_and_deviation_1():
    prepared = standardised(IMAGES)(IMAGES)
    assert prepared.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(prepared.std((0, 2, 3), correction=0), torch.ones(3))
    assert standardised(IMAGES).ranges is None


def test_centred_pixels_have_mean_0_each():
    prepared = centred(IMAGES)(IMAGES)
    assert prepared.mean(0).abs().max() < 1e-5
    assert float(prepared.max() - prepared.min()) <= 2.0
    assert centred(IMAGES).ranges == SHIFTS_AND_FLIPS == Ranges(0.1, 0.0, 0.0, flip=True)


def test_a_flip_mirrors_half_of_the_images_exactly_and_moves_nothing_else():
    images = torch.rand(400, 3, 32, 32)
    moves = draw_moves(400, 32, Ranges(0.0, 0.0, 0.0, flip=True), torch.Generator().manual_seed(0))
    found = moved(images, moves)
    flipped = moves.factor[:, 0] < 0
    assert 150 < int(flipped.sum()) < 250
    expected = torch.where(flipped[:, None, None, None], images.flip(3), images)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-5)
    assert bool((moves.factor[:, 1] == 1).all())


def test_a_shift_comes_before_the_flip_as_in_keras():
    images = torch.rand(1, 3, 32, 32)
    moves = draw_moves(1, 32, Ranges(0.0, 0.0, 0.0, flip=True), torch.Generator().manual_seed(0))
    moves.factor[:, 0], moves.shift[:, 0] = -1.0, 3.0
    right = torch.cat([images[..., 3:], images[..., -1:].expand(1, 3, 32, 3)], 3)
    torch.testing.assert_close(moved(images, moves), right.flip(3), rtol=0.0, atol=2e-5)


def test_a_seeds_other_moves_stay_what_they_were():
    plain = draw_moves(9, 28, Ranges(), torch.Generator().manual_seed(3))
    flips = draw_moves(9, 28, Ranges(flip=True), torch.Generator().manual_seed(3))
    assert torch.equal(plain.shift, flips.shift)
    assert torch.equal(plain.factor, flips.factor * flips.factor.sign())


def test_preparation_takes_no_more_than_it_is_given():
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    prepare = Preparation(torch.tensor(0.5), torch.tensor(0.25))
    assert prepare(pixels).flatten().tolist() == [-2.0, 2.0]
    assert pixels.flatten().tolist() == [0, 255]
