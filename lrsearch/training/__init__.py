"""The torch room: everything that touches tensors, optimizers and models."""

from lrsearch.controllers.exptest import Decision
from lrsearch.training.exptest import ExpTest
from lrsearch.training.hessian import Sharpness, sharpness
from lrsearch.training.lipschitz import LipschitzEstimate, LipschitzLR
from lrsearch.training.rate_bound import SharpnessBound, sharpness_bound
from lrsearch.training.task import Split, TaskData, TrainingTask

__all__ = [
    "Decision",
    "ExpTest",
    "LipschitzEstimate",
    "LipschitzLR",
    "Sharpness",
    "SharpnessBound",
    "Split",
    "TaskData",
    "TrainingTask",
    "sharpness",
    "sharpness_bound",
]
