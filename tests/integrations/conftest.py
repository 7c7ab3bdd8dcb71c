"""A study's run in a store of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lrsearch_integrations.mlflow_tracker import MlflowRun


@pytest.fixture
def study(store_uri: str) -> Iterator[MlflowRun]:
    from lrsearch_integrations.mlflow_tracker import open_study_run

    run = open_study_run(experiment="digits", name="study", tracking_uri=store_uri)
    yield run
    run.finish("complete")
