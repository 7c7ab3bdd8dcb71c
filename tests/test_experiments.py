"""Experiments run as their README says, on a cut, where the data are at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LRSEARCH_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "mnist-train-images-idx3-ubyte.gz").exists(),
    reason="no MNIST files: set LRSEARCH_DATA to their folder",
)
def test_exptest_mnist_prints_published_beside_measured() -> None:
    command = [sys.executable, "-m", "experiments.exptest_mnist.run", "--data-dir", str(DATA)]
    done = subprocess.run(
        [*command, "--seeds", "1", "--epochs", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    for mode in ("robust", "paper"):
        line = next(x for x in done.stdout.splitlines() if x.startswith(f"{mode}: "))
        assert "published 92.30 +- 0.07 %" in line
        assert float(line.split()[1]) > 88.0
