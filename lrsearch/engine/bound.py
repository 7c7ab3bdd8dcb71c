"""Where a search on a task starts: an upper bound of the rate from the data that are trained on."""

from __future__ import annotations

from dataclasses import dataclass

from lrsearch.bounds import covariance_spectrum, max_learning_rate, mean_absolute_sum
from lrsearch.stats.convergence import Mode
from lrsearch.training.loop import MOMENTUM
from lrsearch.training.task import TaskData, TrainingTask

# Curvature of torch's losses in the outputs, relative to the 1 of [E]: MSELoss has no 1/2; the
# Hessian diag(p) - p p^T of the softmax is at most 1/2, that of the logistic loss at most 1/4.
_SCALE = {"mse": 2.0, "cross_entropy": 0.5, "binary_cross_entropy": 0.25}
# How far one step of an Adam-like optimizer may move an output. A heuristic: no curvature enters.
_SIGN_STEP = 0.2
_SIGN_LIKE = ("adam", "adamw", "rmsprop")


@dataclass(frozen=True, slots=True)
class RateBound:
    """The rate at which a search begins.

    Attributes:
        lr_max: the bound.
        lambda_max: largest eigenvalue that it rests on.
        residual: of the eigenvector.
        method: how the eigenvalue was found, or "sign step" where none is used.
    """

    lr_max: float
    lambda_max: float
    residual: float
    method: str


def rate_bound(task: TrainingTask, data: TaskData, mode: Mode) -> RateBound:
    """Upper bound of the learning rate for a task.

    ``paper``: [E], Algorithm 1 on inputs standardised per feature, as the authors' code, whatever
    the optimizer. ``robust``: the second moment of the inputs as they are fed, with the constant
    column that the bias is, and the largest curvature that torch's loss can have: for a linear
    model, descent is stable below this. With momentum mu it is multiplied by (1 - mu), which gives
    the same step in the long run; for Adam-like optimizers it is 0.2 / E ||x||_1, the rate at which
    one step of sign descent moves an output of a linear model by at most 0.2.
    """
    inputs = data.train.inputs
    full_batch = task.batch_size is None or task.batch_size >= len(data.train)
    paper = mode == "paper"
    spectrum = covariance_spectrum(inputs, standardize=paper, bias=not paper)
    scale = (1.0 if paper else _SCALE[task.loss]) * task.loss_scale
    bound = max_learning_rate(
        inputs,
        loss=task.loss,
        outputs=data.outputs,
        full_batch=full_batch,
        loss_scale=scale,
        standardize=paper,
        bias=not paper,
    )
    method: str = spectrum.method
    if not paper and task.optimizer == "momentum":
        bound *= 1.0 - MOMENTUM
    if not paper and task.optimizer in _SIGN_LIKE:
        bound, method = _SIGN_STEP / mean_absolute_sum(inputs), "sign step"
    return RateBound(bound, spectrum.value, spectrum.residual, method)
