"""Which worker runs where: cores shared out, or one CUDA device each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lrsearch.errors import InvalidArgumentError, InvalidTypeError, require_whole

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one worker runs.

    Attributes:
        number: of the worker, from 0.
        device: what its tensors live on: "cpu", or "cuda:0", the only one that it sees.
        label: the device as a person calls it: "cpu", or "cuda:1".
        threads: for its computations on the CPU.
        environment: variables that its process starts with, so that they are there before torch.
    """

    number: int
    device: str
    label: str
    threads: int
    environment: Mapping[str, str] = field(default_factory=dict)


# For a spec that has yet to be given to a worker.
ANYWHERE: Final = Placement(0, "cpu", "cpu", 1)


def placements(workers: int | str | Sequence[str], per_device: int = 1) -> list[Placement]:
    """Share the machine out.

    Args:
        workers: a number of processes on the CPU; "cuda" for every CUDA device that this process
            may use; "cuda:1", "cuda:0,2" or a list such as ["cuda:0", "cuda:2"] for some of them.
        per_device: workers on each CUDA device.

    Raises:
        InvalidArgumentError: if there is no such device, in one line that says what there is.
        InvalidTypeError: if ``workers`` is something else.
    """
    checked_per_device(per_device)
    if isinstance(workers, bool) or not isinstance(workers, (int, str, Sequence)):
        raise InvalidTypeError(
            f"workers must be a number, 'cuda', 'ray' or a list of devices, got {workers!r}"
        )
    if isinstance(workers, int):
        return _on_cpu(workers)
    return _on_cuda(_device_numbers(workers), per_device)


def checked_per_device(per_device: int) -> int:
    """How many workers share a device.

    Raises:
        InvalidArgumentError, InvalidTypeError: if that is no number of workers.
    """
    if require_whole("per_device", per_device) < 1:
        raise InvalidArgumentError(f"per_device must be at least 1, got {per_device!r}")
    return per_device


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cuda_devices() -> list[str]:
    """The CUDA devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    Counts them without starting CUDA here: a process that has is not to be forked, and holds memory
    on the device.
    """
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def _on_cpu(count: int) -> list[Placement]:
    if count < 1:
        raise InvalidArgumentError(f"workers must be at least 1, got {count!r}")
    threads = max(1, cores() // count)
    environment = _threads(threads)
    return [Placement(number, "cpu", "cpu", threads, environment) for number in range(count)]


def _on_cuda(wanted: list[int] | None, per_device: int) -> list[Placement]:
    names = cuda_devices()
    if not names:
        raise InvalidArgumentError(
            "workers: no CUDA device is at hand here (torch.cuda.device_count() is 0): "
            "give a number of CPU workers instead, such as 2"
        )
    chosen = list(range(len(names))) if wanted is None else wanted
    for number in chosen:
        if number >= len(names):
            raise InvalidArgumentError(
                f"workers: there is no device cuda:{number}, only "
                f"{', '.join(f'cuda:{each}' for each in range(len(names)))}"
            )
    threads = max(1, cores() // (len(chosen) * per_device))
    return [
        Placement(
            number=place * per_device + copy,
            device="cuda:0",
            label=f"cuda:{number}",
            threads=threads,
            environment={_VISIBLE: names[number], **_threads(threads)},
        )
        for place, number in enumerate(chosen)
        for copy in range(per_device)
    ]


def _device_numbers(workers: str | Sequence[str]) -> list[int] | None:
    """Numbers of the devices that are meant; None for all."""
    if workers == "cuda":
        return None
    parts = workers.split(",") if isinstance(workers, str) else list(workers)
    numbers: list[int] = []
    for place, part in enumerate(parts):
        text = str(part).strip()
        if not (isinstance(workers, str) and place):  # in "cuda:0,2" the word stands once
            text = text if text.startswith("cuda:") else ""
        digits = text.removeprefix("cuda:")
        if not digits.isdecimal():
            raise InvalidArgumentError(
                f"workers must be a number, 'cuda', 'cuda:0,1', 'ray' or a list of such devices, "
                f"got {workers!r}"
            )
        if int(digits) in numbers:
            raise InvalidArgumentError(
                f"workers names cuda:{digits} twice, got {workers!r}: per_device=2 puts two "
                "workers on each device"
            )
        numbers.append(int(digits))
    if not numbers:
        raise InvalidArgumentError(f"workers must name at least one device, got {workers!r}")
    return numbers


def _threads(count: int) -> dict[str, str]:
    return dict.fromkeys(_THREADS, str(count))
