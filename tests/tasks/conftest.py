"""The folder with the real public data, where this machine has one."""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data():
    folder = Path(os.environ.get("LRSEARCH_DATA", BESIDE))
    if not (folder / "california_housing.npz").is_file():
        pytest.skip("no real data: set LRSEARCH_DATA to a folder with MNIST and California Housing")
    return folder
