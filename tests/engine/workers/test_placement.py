"""Which worker runs where: devices are chosen without having any."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from lrsearch.engine.workers import placement
from lrsearch.engine.workers.placement import placements
from lrsearch.errors import InvalidArgumentError, InvalidTypeError


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to have so many CUDA devices."""

    def have(count: int, visible: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return have


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(8, 2, 4), (8, 3, 2), (2, 2, 1), (1, 4, 1)]
)
def test_workers_on_the_cpu_share_the_cores_and_use_no_more(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int
) -> None:
    monkeypatch.setattr(placement, "cores", lambda: cores)
    seats = placements(workers)
    assert [seat.number for seat in seats] == list(range(workers))
    assert {seat.threads for seat in seats} == {threads}
    assert {seat.environment["OMP_NUM_THREADS"] for seat in seats} == {str(threads)}
    assert {seat.label for seat in seats} == {"cpu"}


def test_every_device_gets_a_worker_that_sees_no_other(devices: Any) -> None:
    devices(3)
    seats = placements("cuda")
    assert [seat.environment["CUDA_VISIBLE_DEVICES"] for seat in seats] == ["0", "1", "2"]
    assert [seat.label for seat in seats] == ["cuda:0", "cuda:1", "cuda:2"]
    # To its own process, the only device that it sees is the first.
    assert {seat.device for seat in seats} == {"cuda:0"}


def test_several_workers_share_a_device(devices: Any) -> None:
    devices(2)
    seats = placements("cuda", 2)
    assert [seat.number for seat in seats] == [0, 1, 2, 3]
    assert [seat.label for seat in seats] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


def test_devices_that_were_hidden_stay_hidden(devices: Any) -> None:
    devices(2, "GPU-5d1f,7")
    seats = placements("cuda")
    assert [seat.environment["CUDA_VISIBLE_DEVICES"] for seat in seats] == ["GPU-5d1f", "7"]


@pytest.mark.parametrize("workers", ["cuda:2,0", ["cuda:2", "cuda:0"]])
def test_some_devices_can_be_named(devices: Any, workers: Any) -> None:
    devices(3, "4,5,6")
    seats = placements(workers)
    assert [seat.environment["CUDA_VISIBLE_DEVICES"] for seat in seats] == ["6", "4"]
    assert [seat.label for seat in seats] == ["cuda:2", "cuda:0"]


@pytest.mark.parametrize(
    ("workers", "per_device", "error", "words"),
    [
        (0, 1, InvalidArgumentError, "workers must be at least 1, got 0"),
        (-3, 1, InvalidArgumentError, "workers must be at least 1, got -3"),
        (True, 1, InvalidTypeError, "workers must be a number"),
        (1.5, 1, InvalidTypeError, "workers must be a number"),
        ("gpu", 1, InvalidArgumentError, "workers must be a number, 'cuda'"),
        ("cuda:x", 1, InvalidArgumentError, "got 'cuda:x'"),
        ([], 1, InvalidArgumentError, "at least one device"),
        (["0"], 1, InvalidArgumentError, "got \\['0'\\]"),
        ("cuda:1,1", 1, InvalidArgumentError, "names cuda:1 twice.*per_device=2"),
        ("cuda:3", 1, InvalidArgumentError, "no device cuda:3, only cuda:0, cuda:1"),
        ("cuda", 0, InvalidArgumentError, "per_device must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    devices: Any, workers: Any, per_device: int, error: type[Exception], words: str
) -> None:
    devices(2)
    with pytest.raises(error, match=words) as told:
        placements(workers, per_device)
    assert "\n" not in str(told.value)


def test_without_a_device_the_remedy_is_named(devices: Any) -> None:
    devices(0)
    with pytest.raises(InvalidArgumentError, match=r"no CUDA device is at hand here.*such as 2"):
        placements("cuda")


def test_counting_devices_does_not_start_cuda() -> None:
    code = (
        "import torch; from lrsearch.engine.workers.placement import cuda_devices; "
        "cuda_devices(); print(torch.cuda.is_initialized())"
    )
    path = os.pathsep.join(path for path in sys.path if path)
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.strip() == "False"
