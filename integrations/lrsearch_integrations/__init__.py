"""Adapters between lrsearch and outside systems, one module each; none loads until asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrsearch_integrations.mlflow_optuna import MLflowTracker

__all__ = ["MLflowTracker"]


def __getattr__(name: str) -> object:
    """Load the tracker, and MLflow with it, when it is first used (PEP 562)."""
    if name != "MLflowTracker":
        raise AttributeError(f"module 'lrsearch_integrations' has no attribute {name!r}")
    from lrsearch_integrations.mlflow_optuna import MLflowTracker

    return MLflowTracker
