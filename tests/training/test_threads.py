"""Tiny steps take one thread, and leave the process as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrsearch.training.threads import suitable_threads


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_tiny_step_gets_one_thread_and_gives_the_others_back():
    with suitable_threads(nn.Linear(10, 10), rows=32):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_a_large_step_keeps_its_threads():
    with suitable_threads(nn.Linear(1000, 1000), rows=32):
        assert torch.get_num_threads() == 2


def test_an_error_gives_the_threads_back_too():
    with pytest.raises(RuntimeError), suitable_threads(nn.Linear(2, 2), rows=1):
        raise RuntimeError
    assert torch.get_num_threads() == 2
