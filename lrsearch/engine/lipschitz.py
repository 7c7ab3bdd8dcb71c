"""LipschitzLR as a search uses it: a first rate from one batch, renewed at each epoch's end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from lrsearch.stats.convergence import Mode
from lrsearch.tracking import StepTracker
from lrsearch.training.lipschitz import LipschitzEstimate, LipschitzLR
from lrsearch.training.loop import MOMENTUM, build_model, build_optimizer, first_batch, rate_of
from lrsearch.training.task import TaskData, TrainingTask

# What is tried with momentum: the papers' x (AdaMo's first rate, in their form of momentum), and
# multiples of the rate that a bound for any output gives, up to about the papers' own 1 / L.
_TRIED: Final[dict[Mode, tuple[float, ...]]] = {
    "paper": (0.1, 0.5, 1.0),
    "robust": (1.0, 3.0, 10.0),
}
# [N]: RMSprop's and Auto-Adam's first rate, and the means that Auto-Adam starts from.
_FIRST_RATE: Final = 1e-3
_AUTO_ADAM: Final = (1.0, 1e-6)
_ADAM_LIKE: Final = ("adam", "adamw")


def default_multipliers(task: TrainingTask, mode: Mode) -> tuple[float, ...]:
    """Three to be tried with momentum, as AdaMo ([L] 7.4); 1 for the others."""
    return _TRIED[mode] if task.optimizer == "momentum" else (1.0,)


def first_estimate(task: TrainingTask, data: TaskData, mode: Mode, seed: int) -> LipschitzEstimate:
    """The rate that the first batch gives, with the weights that each trial of the seed starts at.

    One forward pass in evaluation mode. ``reason`` says why there is no rate, such as a dead layer.

    Raises:
        ValueError: if the model has no linear layer.
    """
    model = build_model(task, data, seed)
    optimizer = build_optimizer(task, model, 1.0)
    inputs, _ = first_batch(task, data, seed)
    with LipschitzLR(optimizer, model, exact=True, **_options(task, data, mode)) as lipschitz:
        return lipschitz.step([inputs])


def papers_first_rate(task: TrainingTask, mode: Mode) -> tuple[float, str] | None:
    """The first epoch's rate where mode "paper" fixes it, for a multiplier of 1, and its name.

    Momentum has AdaMo's x = 1, which is a rate of 1 - mu with torch's velocity; RMSprop and Adam
    have 1e-3. None where it comes from the first batch: for plain descent, and in mode "robust",
    since x knows nothing of the scale of the inputs (docs/results-lipschitz.md).
    """
    if mode != "paper" or task.optimizer == "sgd":
        return None
    if task.optimizer == "momentum":
        return 1.0 - MOMENTUM, "AdaMo's x times 1 - momentum"
    return _FIRST_RATE, "the papers' first rate"


class RenewedRate:
    """A trial's rate, renewed at each epoch's end.

    The rate is multiplier / L, the multiplier being that of the trial's first rate. In mode "paper"
    AdaMo's x acts on the first epoch alone, and is where its mean of L starts. ``lipschitz/lr`` in
    the tracker is 1 / L, ``train/lr`` the rate itself.

    Args:
        task, data, mode: what is trained.
        model, optimizer: of the trial, the optimizer at its first rate.
        unit: first rate for a multiplier of 1.
        tracker: the trial's run.
    """

    def __init__(
        self,
        task: TrainingTask,
        data: TaskData,
        mode: Mode,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        unit: float,
        tracker: StepTracker,
    ) -> None:
        self._optimizer = optimizer
        multiplier = rate_of(optimizer) / unit
        start: Any = None
        if mode == "paper" and task.optimizer == "momentum":
            start, multiplier = rate_of(optimizer) / (1.0 - MOMENTUM), 1.0
        elif mode == "paper" and task.optimizer in _ADAM_LIKE:
            start = _AUTO_ADAM
        self._multiplier = multiplier
        self._lipschitz = LipschitzLR(
            optimizer, model, start=start, tracker=tracker, **_options(task, data, mode)
        )
        self._kept = ""

    @property
    def trouble(self) -> str:
        """Why an epoch's bound could not be used, the last time that it could not; else ""."""
        return self._kept

    def renew(self) -> None:
        """Set the rate of the next epoch; an unusable bound leaves it as it is."""
        estimate = self._lipschitz.step()
        if estimate.reason:
            self._kept = f"after epoch {estimate.epoch + 1}: {estimate.reason}"
        elif self._multiplier != 1.0:
            for group in self._optimizer.param_groups:
                group["lr"] *= self._multiplier

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly, within an epoch too; plain values."""
        return {"lipschitz": self._lipschitz.state_dict(), "trouble": self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``. Load the model's and the optimizer's beside it."""
        self._lipschitz.load_state_dict(state["lipschitz"])
        self._kept = str(state["trouble"])

    def close(self) -> None:
        """Take the hooks off the model."""
        self._lipschitz.close()


def _options(task: TrainingTask, data: TaskData, mode: Mode) -> dict[str, Any]:
    """What LipschitzLR is to know about a task.

    Mode "paper" has the papers' forms. Mode "robust" has the bound for any output in place of
    their gradient at a uniform one, and for RMSprop and Adam the mean square of one entry of the
    gradient in place of the norm's: on shifted tasks 8 failures of 48 in place of 22
    (docs/results-lipschitz.md).
    With the papers' |K_a - ‖y‖| K_z / m for squared errors the rate would explode as the fit gets
    good: it goes to zero then; the bound for any output is (K_a + ‖y‖) K_z / m.

    torch's mean squared error has no 1/2 and is a mean over the outputs too: 2 / outputs times the
    papers' loss.
    """
    robust = mode == "robust"
    options: dict[str, Any] = {
        "loss": task.loss,
        "squared": "mean" if robust else "norm",
        "supremum": robust,
        "first_epoch": "optimizer",
        "loss_scale": task.loss_scale,
    }
    if task.loss == "mse":
        options["loss_scale"] *= 2.0 / data.outputs
        options["target_norm"] = _largest_norm(data.train.targets, task.batch_size)
    return options


def _largest_norm(targets: Tensor, batch_size: int | None) -> float:
    """Largest norm of a sequential batch of targets."""
    batches = torch.split(targets.double(), batch_size or len(targets))
    return max(float(torch.linalg.vector_norm(batch)) for batch in batches)
