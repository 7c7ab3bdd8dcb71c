"""Data that is loaded once, and mapped by every worker."""

from __future__ import annotations

from pathlib import Path

import torch

from lrsearch import Split, TaskData
from lrsearch.engine.workers.sharing import load_data, save_data


def some_data() -> TaskData:
    whole = torch.arange(60.0).reshape(12, 5)
    parts = [
        Split(whole[0:6], torch.arange(6)),
        Split(whole[6:9].t().contiguous().t(), torch.arange(3)),  # columns first in memory
        Split(whole[9:], torch.arange(3)),
    ]
    return TaskData(*parts, outputs=6, name="rows")


def test_data_come_back_as_they_were_in_value_type_and_order(tmp_path: Path) -> None:
    data = some_data()
    save_data(data, tmp_path / "data.pt")
    again = load_data(tmp_path / "data.pt")
    assert (again.outputs, again.name) == (6, "rows")
    for name in ("train", "validation", "test"):
        for kind in ("inputs", "targets"):
            before, after = (getattr(getattr(each, name), kind) for each in (data, again))
            assert torch.equal(before, after)
            assert (before.dtype, before.stride()) == (after.dtype, after.stride())


def test_what_a_worker_writes_stays_its_own(tmp_path: Path) -> None:
    save_data(some_data(), tmp_path / "data.pt")
    one, other = load_data(tmp_path / "data.pt"), load_data(tmp_path / "data.pt")
    one.train.inputs.zero_()
    assert float(other.train.inputs.sum()) > 0
    assert float(load_data(tmp_path / "data.pt").train.inputs.sum()) > 0
