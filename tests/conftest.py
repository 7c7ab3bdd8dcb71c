"""Stores for tests, MLflow's made once since that takes seconds; a bound that is far too high."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from postgres import PostgresServer, serve, why_missing

pytest.register_assert_rewrite("reproducing")


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lrsearch_integrations.mlflow_store import prepare_store

    path = tmp_path_factory.mktemp("template") / "mlruns" / "mlflow.db"
    prepare_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def store_uri(tmp_path: Path, mlflow_template: Path) -> str:
    path = tmp_path / "mlruns" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(mlflow_template.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server; ``create_database`` gives a store of one's own."""
    reason = why_missing()
    if reason:
        pytest.skip(reason)
    with serve() as server:
        yield server


@pytest.fixture
def scale_bound(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Multiply the rate at which every search of this test begins."""
    from lrsearch.engine import start
    from lrsearch.engine.bound import RateBound
    from lrsearch.training.lipschitz import LipschitzEstimate

    def scale(factor: float) -> None:
        true_bound, true_estimate = start.rate_bound, start.first_estimate

        def scaled_bound(*arguments: object) -> RateBound:
            bound = true_bound(*arguments)  # type: ignore[arg-type]
            return replace(bound, lr_max=bound.lr_max * factor)

        def scaled_estimate(*arguments: object) -> LipschitzEstimate:
            estimate = true_estimate(*arguments)  # type: ignore[arg-type]
            return replace(estimate, lr=estimate.lr * factor)

        monkeypatch.setattr(start, "rate_bound", scaled_bound)
        monkeypatch.setattr(start, "first_estimate", scaled_estimate)

    return scale
