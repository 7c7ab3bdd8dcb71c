"""Stores for tests; MLflow's schema takes seconds to create and is made once."""

from __future__ import annotations

from collections.abc import Iterator
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
