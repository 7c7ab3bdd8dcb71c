"""Workers on real CUDA devices; the choice of devices is tested without any in test_placement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lrsearch import search
from lrsearch.engine.result import DEVICE, SearchResult

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is at hand"),
]


@pytest.fixture
def run(tmp_path: Path, scale_bound: Callable[[float], None]) -> Callable[..., SearchResult]:
    scale_bound(30.0)

    def started(task: str, **options: Any) -> SearchResult:
        if "workers" in options:
            options.setdefault("storage", f"journal:{tmp_path / 'study.journal'}")
        if options.get("method", "exptest") == "exptest":
            options.setdefault("start", "bound")
        return search(f"worker_tasks:{task}", tracker="none", **options)

    return started


def check(result: SearchResult, expected: SearchResult) -> None:
    """The rung of the CPU's answer; the device rounds in its own way."""
    assert result.lr == expected.lr
    assert result.value == pytest.approx(expected.value, rel=1e-3)
    assert set(result.trials["state"]) <= {"COMPLETE", "PRUNED"}


def devices_of(result: SearchResult) -> set[str]:
    return {trial.user_attrs[DEVICE] for trial in result.study.trials if trial.params}


def test_one_worker_on_a_device(run: Callable[..., SearchResult]) -> None:
    result = run("line", device="cuda")
    check(result, run("line"))
    assert devices_of(result) == {"cuda:0"}


def test_two_workers_on_each_device(run: Callable[..., SearchResult]) -> None:
    result = run("line", workers="cuda", per_device=2)
    check(result, run("line"))
    assert devices_of(result) <= {f"cuda:{k}" for k in range(torch.cuda.device_count())}


def test_a_killed_workers_trial_goes_on_on_the_device(
    run: Callable[..., SearchResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRSEARCH_TEST_MARK", str(tmp_path / "mark"))
    (tmp_path / "mark").touch()
    result = run("deadly_line", workers="cuda:0", per_device=2, checkpoint_seconds=0.01)
    assert not (tmp_path / "mark").exists()
    check(result, run("line"))


def test_a_worker_that_ran_out_of_the_devices_memory_lives(
    run: Callable[..., SearchResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRSEARCH_TEST_MARK", str(tmp_path / "mark"))
    (tmp_path / "mark").touch()
    result = run("greedy_line", workers="cuda:0")
    failed = result.trials[result.trials["state"] == "FAIL"]
    assert len(failed) == 1
    assert "out of memory with 5 parameters, batches of 16 rows" in failed["reason"].iloc[0]
    assert result.lr == run("line").lr
