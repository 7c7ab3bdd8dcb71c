"""Keras' clipped cross-entropy, against autograd through the clip."""

from __future__ import annotations

import torch
from torch import nn

from experiments.lipschitz.images import CLIP, ClippedBank


def test_the_first_runs_are_clipped_and_the_others_whole():
    torch.manual_seed(0)
    inputs, targets = 30.0 * torch.randn(200, 5), torch.randint(0, 4, (200,))
    layer = nn.Linear(5, 4)
    bank = ClippedBank([layer, layer], clipped=1)
    losses = bank.backward(inputs, targets)
    for run, clipped in enumerate((True, False)):
        weight = layer.weight.detach().double().requires_grad_()
        outputs = inputs.double() @ weight.T + layer.bias.detach().double()
        if clipped:
            chances = torch.softmax(outputs, dim=1).clamp(CLIP, 1.0 - CLIP)
            loss = -chances[torch.arange(200), targets].log().mean()
            beyond = chances[torch.arange(200), targets] == CLIP
            assert 0.1 < beyond.double().mean() < 0.9  # so that the clip matters
        else:
            loss = nn.functional.cross_entropy(outputs, targets)
        loss.backward()
        torch.testing.assert_close(losses[run].double(), loss.detach(), rtol=1e-5, atol=1e-6)
        gradient = bank.parameters(run)[0].grad
        torch.testing.assert_close(gradient.double(), weight.grad, rtol=1e-4, atol=1e-4)
