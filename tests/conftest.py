"""MLflow stores for tests; the schema takes seconds to create and is made once."""

from __future__ import annotations

from pathlib import Path

import pytest


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
