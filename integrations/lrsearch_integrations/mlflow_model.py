"""A torch module as the files of an MLflow model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


def model_files(model: Any, example: Any) -> dict[str, bytes]:
    """The files of an MLflow model, by their names in its folder.

    Saved here and not by ``mlflow.pytorch.log_model``, so that it goes through the spool like
    everything else. MLflow stores the traced graph (``torch.export``): loading it runs no code of
    whoever wrote it.

    Args:
        model: a torch module, in evaluation mode.
        example: inputs of shape (rows, ...), two rows or more, so that any number can follow; the
            signature is that of these and their outputs.
    """
    # Slow to load, and seldom wanted.
    import torch
    from mlflow import pytorch
    from mlflow.models import infer_signature

    with torch.no_grad():
        outputs = model(example)
    inputs = example.cpu().numpy()
    signature = infer_signature(inputs, outputs.cpu().numpy())
    with tempfile.TemporaryDirectory(prefix="lrsearch-") as temporary:
        folder = Path(temporary, "model")
        # Named here: MLflow would load the model in another process to find out.
        needs = [f"torch=={torch.__version__.partition('+')[0]}"]
        pytorch.save_model(
            model,
            str(folder),
            signature=signature,
            input_example=inputs,
            pip_requirements=needs,
            serialization_format="pt2",
        )
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
