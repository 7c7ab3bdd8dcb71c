"""The chosen trial's model in the record, and back from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch import search
from lrsearch.tasks import resolve_task
from lrsearch_integrations import mlflow_tracker
from lrsearch_integrations.mlflow_api import MlflowClient


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lrsearch.engine.record.find_tracker", lambda name: mlflow_tracker.open_study_run
    )


@pytest.mark.slow
def test_the_chosen_model_comes_back_with_its_signature_and_its_loss(store_uri: str) -> None:
    import mlflow

    result = search(
        "digits-mlp", method="grid", trials=3, epochs=2, tracking_uri=store_uri, log_model=True
    )
    folder = mlflow.artifacts.download_artifacts(
        run_id=result.run_id, artifact_path="model", tracking_uri=store_uri
    )
    described = mlflow.models.Model.load(folder)
    assert described.signature is not None
    assert described.signature.inputs.input_types() != []
    assert str(described.signature.inputs).count("64") == 1
    assert str(described.signature.outputs).count("10") == 1
    model = mlflow.pytorch.load_model(folder)
    data = resolve_task("digits-mlp").data(0)
    with torch.no_grad():
        outputs = model(data.validation.inputs)
        loss = torch.nn.functional.cross_entropy(outputs, data.validation.targets)
    assert loss.item() == pytest.approx(result.val_loss, rel=1e-5)
    tags = MlflowClient(tracking_uri=store_uri).get_run(result.run_id).data.tags
    assert tags["lrsearch.model"] == "model"


@pytest.mark.slow
def test_a_model_that_cannot_be_traced_costs_the_model_alone(
    store_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Wayward(torch.nn.Linear):
        def forward(self, inputs: Any) -> Any:
            return super().forward(inputs) if inputs.sum().item() > 0 else inputs

    with mlflow_tracker.open_study_run(
        experiment="models", name="study", tracking_uri=store_uri
    ) as run:
        run.log_model("model", Wayward(2, 1), torch.zeros(2, 2))
        run.log_metrics({"train/loss": 1.0}, 0)
    stored = MlflowClient(tracking_uri=store_uri).get_run(run.run_id)
    (told,) = [each.getMessage() for each in caplog.records if each.name == "lrsearch"]
    assert "cannot store the model: " in told
    assert "\n" not in told
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {"train/loss": 1.0})
