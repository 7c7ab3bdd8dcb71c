"""The sums behind the window correction."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from lrsearch.training.gradients import GradientSums


def parameters():
    return [
        nn.Parameter(torch.zeros(3)),
        nn.Parameter(torch.zeros(2, 2)),
        nn.Parameter(torch.ones(1)),
    ]


def set_gradients(params, rng, *, kinds=(0, 1)):
    for kind in kinds:
        shape = params[kind].shape
        params[kind].grad = torch.tensor(rng.standard_normal(shape), dtype=torch.float32)
    return np.concatenate([params[kind].grad.numpy().ravel() for kind in kinds]).astype(float)


def plain_correction(gradients):
    """Eq. 53 with numpy."""
    path = sum(np.linalg.norm(g) for g in gradients)
    return path / np.linalg.norm(np.sum(gradients, axis=0))


def test_equals_eq_53_in_numpy():
    rng, params = np.random.default_rng(0), parameters()
    sums, seen = GradientSums(params), []
    for _ in range(20):
        seen.append(set_gradients(params, rng))
        sums.add()
    assert sums.correction() == pytest.approx(plain_correction(seen), rel=1e-5)


def test_equal_gradients_need_no_correction_and_opposite_ones_have_none():
    params = parameters()
    sums = GradientSums(params)
    assert sums.correction() == 1.0
    sums.add()  # no gradients yet
    assert sums.correction() == 1.0
    params[0].grad = torch.tensor([3.0, 4.0, 0.0])
    for _ in range(5):
        sums.add()
    assert sums.correction() == 1.0
    opposed = GradientSums(params)
    opposed.add()
    params[0].grad = -params[0].grad
    opposed.add()
    assert opposed.correction() == float("inf")


def test_parameters_may_join_and_leave():
    rng, params = np.random.default_rng(1), parameters()
    sums = GradientSums(params)
    first = set_gradients(params, rng, kinds=(0,))
    sums.add()
    params[0].grad = None
    second = set_gradients(params, rng, kinds=(1,))
    sums.add()
    path = np.linalg.norm(first) + np.linalg.norm(second)
    size = np.hypot(np.linalg.norm(first), np.linalg.norm(second))
    assert sums.correction() == pytest.approx(path / size, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_summed_in_float32(dtype):
    params = [nn.Parameter(torch.zeros(4, dtype=dtype))]
    sums = GradientSums(params)
    params[0].grad = torch.full((4,), 0.001, dtype=dtype)
    for _ in range(3000):  # in float16 the sum would stand still at 2
        sums.add()
    assert sums.correction() == pytest.approx(1.0, rel=1e-2)


def test_sparse_gradients_count():
    table = nn.Embedding(10, 3, sparse=True)
    sums, dense = GradientSums([table.weight]), []
    for rows in ([0, 1], [1, 2], [9, 9]):
        table.weight.grad = None
        table(torch.tensor(rows)).sum().backward()
        assert table.weight.grad.is_sparse
        dense.append(table.weight.grad.to_dense().numpy().ravel().astype(float))
        sums.add()
    assert sums.correction() == pytest.approx(plain_correction(dense), rel=1e-5)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_steps_that_a_scaler_skips_leave_no_trace(bad):
    rng, params = np.random.default_rng(2), parameters()
    sums, seen = GradientSums(params, skip_nonfinite=True), []
    for step in range(6):
        gradient = set_gradients(params, rng)
        if step == 3:
            params[1].grad[0, 1] = bad
        else:
            seen.append(gradient)
        sums.add()
    assert sums.correction() == pytest.approx(plain_correction(seen), rel=1e-5)
    plain = GradientSums(params)
    params[1].grad[0, 1] = bad
    plain.add()
    assert plain.correction() == 1.0


def test_the_gradients_themselves_stay_as_they_are():
    params = parameters()
    gradient = torch.tensor([float("inf"), 1.0, 2.0])
    params[0].grad = gradient.clone()
    sums = GradientSums(params, skip_nonfinite=True)
    sums.add()
    torch.testing.assert_close(params[0].grad, gradient)


@pytest.mark.parametrize("steps", [1, 31, 32, 33, 100])
def test_adding_many_steps_at_once_changes_no_bit(steps):
    """The same numbers as with each step's norm added at once, in the order of the steps."""
    rng, params = np.random.default_rng(4), parameters()
    sums, path, vector = GradientSums(params), torch.zeros(()), torch.zeros(7)
    for step in range(steps):
        set_gradients(params, rng, kinds=(0, 1))
        if step % 40 == 39:
            params[1].grad.zero_()
        norms = [torch.linalg.vector_norm(params[kind].grad) for kind in (0, 1)]
        path += torch.linalg.vector_norm(torch.stack(norms))
        vector += torch.cat([params[kind].grad.flatten() for kind in (0, 1)])
        sums.add()
    state = sums.state_dict()
    assert torch.equal(state["path"], path)
    assert torch.equal(torch.cat([part.flatten() for part in state["vector"].values()]), vector)


def test_saved_sums_go_on_exactly():
    rng, params = np.random.default_rng(3), parameters()
    sums = GradientSums(params)
    for _ in range(3):
        set_gradients(params, rng)
        sums.add()
    buffer = io.BytesIO()
    torch.save(sums.state_dict(), buffer)
    buffer.seek(0)
    copy = GradientSums(params)
    copy.load_state_dict(torch.load(buffer, weights_only=True))
    before = sums.correction()
    assert copy.correction() == before
    set_gradients(params, rng)
    sums.add()
    assert copy.correction() == before  # it shares no memory
    copy.add()
    assert copy.correction() == sums.correction() != before
