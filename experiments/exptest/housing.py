"""Regression on California Housing: what Table 3 and Appendix E of [E] train, full batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

from experiments.banks import Bank
from experiments.exptest import data
from experiments.exptest.methods import NOTEBOOK, exptest_run
from experiments.exptest.training import FixedRates, minibatches, train
from experiments.harness.cells import Measured
from experiments.harness.reproduction import Plan
from lrsearch import TaskData, TrainingTask
from lrsearch.engine.bound import rate_bound
from lrsearch.tasks.builtin import build_mlp

EPOCHS: Final = 10_000
QUICK_EPOCHS: Final = 400
QUICK_ROWS: Final = 2048
HIDDEN: Final = (32, 32)


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on."""
    return {
        "rows": QUICK_ROWS if plan.quick else "all",
        "split": data.HOUSING_SPLIT,
        "epochs": QUICK_EPOCHS if plan.quick else EPOCHS,
    }


def task_data(plan: Plan) -> TaskData:
    """The one split of all runs."""
    whole = data.housing(plan.data_dir)
    return data.cut(whole, QUICK_ROWS) if plan.quick else whole


@lru_cache(maxsize=8)
def bound(mode: str, plan: Plan) -> float:
    """Where each mode starts; the notebook's bound is also the unit of the fixed rates."""
    split = task_data(plan)
    if mode == NOTEBOOK:
        return data.notebook_bound(data.everything(split))
    task = TrainingTask(
        "housing",
        data=lambda seed: split,
        model=lambda given: build_mlp(given, hidden=HIDDEN),
        loss="mse",
        metric="mse",
        batch_size=None,
    )
    return rate_bound(task, split, "paper" if mode == "paper" else "robust").lr_max


@dataclass(slots=True)
class BestWeights:
    """The weights with the lowest validation loss so far, as [E] IV.B evaluates them.

    The notebook keeps ``model.state_dict()`` without a copy, so that its figures are those of the
    last weights; both are reported.
    """

    bank: Bank
    split: TaskData
    loss: float = float("inf")
    epoch: int = -1
    kept: list[Tensor] | None = None
    rose: bool = False

    def look(self, epoch: int) -> bool:
        """Validate, and keep weights with the lowest loss so far; False: training goes on."""
        validation = self.split.validation
        loss = float(self.bank.losses(validation.inputs, validation.targets)[0])
        self.rose = not loss < self.loss
        if self.rose:
            return False
        self.loss, self.epoch = loss, epoch
        if self.kept is None:
            self.kept = [stack.clone() for stack in self.bank.stacks]
        else:
            torch._foreach_copy_(self.kept, self.bank.stacks)
        return False

    def look_and_stop(self, epoch: int) -> bool:
        """The same, but True once the loss does not fall: [E]'s Appendix E stops there."""
        self.look(epoch)
        return self.rose

    def test_losses(self) -> tuple[float, float]:
        """Test losses of the last weights, and of the best ones."""
        test = self.split.test
        last = float(self.bank.losses(test.inputs, test.targets)[0])
        if self.kept is not None:
            torch._foreach_copy_(self.bank.stacks, self.kept)
        return last, float(self.bank.losses(test.inputs, test.targets)[0])


def measure(
    method: str,
    rate: float | None,
    row: Mapping[str, Any],
    plan: Plan,
    *,
    seed: int,
) -> Measured:
    """Train one run of the 8-32-32-1 network.

    Args:
        method: an optimizer, or a mode of ExpTest.
        rate: where it starts; None for Adadelta's own.
        row: columns to keep.
        plan: rows and epochs.
        seed: of the weights.
    """
    split = task_data(plan)
    torch.manual_seed(seed)
    bank = Bank([build_mlp(split, hidden=HIDDEN)], loss="mse")
    epochs = int(settings(plan)["epochs"])
    best = BestWeights(bank, split)
    tell: Callable[[], dict[str, Any]]
    if method in (NOTEBOOK, "paper", "robust"):
        assert rate is not None
        driver, story = exptest_run(
            bank,
            0,
            method,
            rate,
            total_steps=epochs,
            full_batch=True,
            # The notebook draws new weights at a restart.
            reinitialise=lambda: bank.load(0, build_mlp(split, hidden=HIDDEN)),
        )
        curves = train(bank, [driver], _batches(split, epochs), steps=epochs, after=best.look)
        tell = lambda: story().as_row()  # noqa: E731
    else:
        fixed = FixedRates(method, [(rate, bank.parameters(0))])
        curves = train(bank, [fixed], _batches(split, epochs), steps=epochs, after=best.look)
        tell = dict
    train_loss = float(bank.losses(split.train.inputs, split.train.targets)[0])
    last, of_best = best.test_losses()
    measured = {
        **row,
        "lr": rate,
        "steps": epochs,
        "test_mse": last,
        "test_mse_best": of_best,
        "best_epoch": best.epoch,
        "train_loss": train_loss,
        **tell(),
    }
    return Measured([measured], [curves[0]])


def _batches(split: TaskData, epochs: int) -> Any:
    return minibatches(split.train, batch_size=None, seed=0, steps=epochs)
