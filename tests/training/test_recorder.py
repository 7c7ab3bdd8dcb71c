"""Losses of a window, on the host and on a device."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.stats import first_divergence
from lrsearch.training.recorder import DeviceLosses, DivergenceWatch, HostLosses, make_recorder

NAN, INF = float("nan"), float("inf")
CURVES = st.lists(
    st.one_of(st.floats(0.0, 30.0), st.sampled_from([1.0, 100.0, 1e9, 1e17, NAN, INF, -INF])),
    max_size=40,
)


def first_seen(losses):
    """Index at which a watch first says that the curve has diverged."""
    watch = DivergenceWatch()
    return next((i for i, loss in enumerate(losses) if watch.sees(loss)), None)


@given(CURVES)
@example([1.0] * 6 + [100.0] * 5 + [1.0] * 9)
@example([1.0, -INF])
@example([1.0] * 9 + [100.0] * 5)
def test_watching_one_by_one_equals_looking_at_the_curve(losses):
    assert first_seen(losses) == first_divergence(losses)


@given(CURVES, st.integers(0, 40))
def test_a_watch_over_a_saved_window_goes_on_as_if_it_had_seen_it(losses, cut):
    at = first_divergence(losses)
    if at is not None and at < cut:
        return
    watch = DivergenceWatch.over(losses[:cut])
    rest = losses[cut:]
    found = next((i for i, loss in enumerate(rest) if watch.sees(loss)), None)
    assert found == (None if at is None else at - min(cut, len(losses)))


@pytest.mark.parametrize("make", [HostLosses, DeviceLosses])
def test_values_come_back_in_order_until_cleared(make):
    recorder = make()
    for i in range(50):
        assert recorder.append(torch.tensor(float(i))) is False or i > 9
    np.testing.assert_array_equal(recorder.values(), np.arange(50.0))
    np.testing.assert_array_equal(recorder.values(), np.arange(50.0))
    recorder.append(torch.tensor(50.0))
    assert recorder.values().tolist() == [float(i) for i in range(51)]
    recorder.clear()
    assert recorder.values().shape == (0,)
    recorder.append(7.0)
    assert recorder.values().tolist() == [7.0]


@given(CURVES)
def test_a_device_sees_what_the_host_sees_within_two_chunks(losses):
    host, device = HostLosses(), DeviceLosses()
    seen_host = seen_device = None
    for i, loss in enumerate(losses + [losses[-1] if losses else 1.0] * 16):
        tensor = torch.tensor(loss, dtype=torch.float64)
        if host.append(tensor) and seen_host is None:
            seen_host = i
        if device.append(tensor) and seen_device is None:
            seen_device = i
    np.testing.assert_array_equal(host.values(), device.values())
    assert (seen_host is None) == (seen_device is None)
    if seen_host is not None:
        assert seen_host <= seen_device < seen_host + 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", [HostLosses, DeviceLosses])
def test_every_dtype_keeps_its_value(make, dtype):
    recorder = make()
    loss = torch.tensor(0.1, dtype=dtype, requires_grad=True) * 3
    recorder.append(loss)
    assert recorder.values().tolist() == [float(loss.detach())]


@pytest.mark.parametrize("make", [HostLosses, DeviceLosses])
def test_a_kept_loss_holds_no_graph(make):
    weight = torch.ones(1, requires_grad=True)
    recorder = make()
    for _ in range(3):
        loss = (weight * 2.0).sum()
        recorder.append(loss)
    assert not any(t.requires_grad for t in getattr(recorder, "_pending", []))
    loss.backward()  # the graph is whole


@pytest.mark.parametrize("make", [HostLosses, DeviceLosses])
def test_a_saved_window_is_taken_over_with_its_divergence(make):
    recorder = make()
    recorder.append(9.0)
    recorder.load([1.0] * 12 + [50.0] * 4)
    assert recorder.values().tolist() == [1.0] * 12 + [50.0] * 4
    verdicts = [recorder.append(torch.tensor(50.0)) for _ in range(16)]
    assert verdicts[0 if make is HostLosses else 15]


def test_numbers_and_small_tensors_are_losses():
    for loss in (1, 1.0, np.float32(1.0), np.int64(1), torch.tensor(1.0), torch.tensor([1.0])):
        assert isinstance(make_recorder(loss), HostLosses)


@pytest.mark.parametrize("loss", ["1.0", None, True, [1.0], np.ones(2)])
def test_other_types_are_named(loss):
    with pytest.raises(InvalidTypeError, match="loss must be a tensor or a number, got"):
        make_recorder(loss)


@pytest.mark.parametrize("shape", [(2,), (0,), (3, 1)])
def test_other_shapes_are_named(shape):
    with pytest.raises(InvalidArgumentError, match="loss must be a scalar, got a tensor of shape"):
        make_recorder(torch.zeros(shape))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_appending_never_waits():
    recorder = make_recorder(torch.zeros((), device="cuda"))
    losses = [torch.tensor(float(i), device="cuda") for i in range(100)]
    assert isinstance(recorder, DeviceLosses)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in losses:
            recorder.append(loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_array_equal(recorder.values(), np.arange(100.0))
