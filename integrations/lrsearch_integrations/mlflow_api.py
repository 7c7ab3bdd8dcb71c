"""The one door to MLflow: it is imported after its manners are set.

MLflow reads these settings when it is imported and at each request; what the user has set stays.
By default it reports usage, prints links to stdout, and holds a training up for four minutes in
one call to a server that is gone.
"""

from __future__ import annotations

import os

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}.items():
    os.environ.setdefault(_name, _value)

# ruff: noqa: E402  the environment must be set first
from mlflow import MlflowClient, active_run, get_tracking_uri
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

__all__ = [
    "Dataset",
    "DatasetInput",
    "InputTag",
    "Metric",
    "MlflowClient",
    "MlflowException",
    "Param",
    "Run",
    "RunTag",
    "active_run",
    "get_tracking_uri",
]
