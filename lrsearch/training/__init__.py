"""The torch room: everything that touches tensors, optimizers and models."""

from lrsearch.controllers.exptest import Decision
from lrsearch.training.exptest import ExpTest
from lrsearch.training.lipschitz import LipschitzEstimate, LipschitzLR
from lrsearch.training.task import Split, TaskData, TrainingTask

__all__ = [
    "Decision",
    "ExpTest",
    "LipschitzEstimate",
    "LipschitzLR",
    "Split",
    "TaskData",
    "TrainingTask",
]
