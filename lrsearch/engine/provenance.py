"""Where a result comes from: which data, which code, which versions, which machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from typing import Final

import numpy as np
import optuna
import torch
from torch import Tensor

from lrsearch.training.task import TaskData
from lrsearch.version import __version__

# Of each tensor, in the digest: a data set of gigabytes costs no more than this.
_SAMPLE_BYTES: Final = 4 * 2**20
_GIT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class DataRecord:
    """What a tracker is told about data: name, digest of the content, sizes as JSON."""

    name: str
    digest: str
    profile: str


def data_record(data: TaskData) -> DataRecord:
    """Name and measure the data; some milliseconds."""
    return DataRecord(data.name, data_digest(data), data_profile(data))


def data_digest(data: TaskData) -> str:
    """A name for the content of the training data: equal data, equal digest, on every machine.

    SHA-256 (32 hexadecimal digits of it) over shapes, types and rows of inputs and targets: all of
    them up to 4 MiB, of larger tensors that much in evenly spaced rows. The split of each seed has
    a digest of its own.
    """
    content = hashlib.sha256(str(data.outputs).encode())
    for tensor in (data.train.inputs, data.train.targets):
        content.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        content.update(_sample(tensor).numpy().tobytes())
    return content.hexdigest()[:32]


def data_profile(data: TaskData) -> str:
    """Sizes of the data, as JSON."""
    return json.dumps(
        {
            "rows": len(data.train),
            "features": list(data.train.inputs.shape[1:]),
            "outputs": data.outputs,
            "validation_rows": len(data.validation),
            "test_rows": len(data.test),
        }
    )


def machine(data: TaskData) -> dict[str, object]:
    """Device, processors and system that a search runs on."""
    device = data.train.inputs.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "device": f"{device} ({name})" if name else str(device),
        "cpu_count": os.cpu_count() or 1,
        "platform": platform.platform(),
    }


def versions() -> dict[str, object]:
    """Versions of what a result may depend on; ``code`` is the user's own, where git knows it."""
    found: dict[str, object] = {
        "lrsearch": __version__,
        "torch": torch.__version__,
        "optuna": optuna.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    code = code_version()
    return {**found, "code": code} if code else found


def code_version() -> str:
    """What git calls the code in the working directory, "-dirty" if it was changed; "" if none."""
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--tags", "--dirty"],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip()


def _sample(tensor: Tensor) -> Tensor:
    rows = len(tensor)
    row_bytes = max(1, tensor.element_size() * (tensor.numel() // max(rows, 1)))
    most = max(1, _SAMPLE_BYTES // row_bytes)
    if rows > most:
        places = torch.linspace(0, rows - 1, most, dtype=torch.float64).long()
        tensor = tensor[places.to(tensor.device)]
    return tensor.detach().cpu().contiguous()
