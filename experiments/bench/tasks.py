"""The panel's tasks: base tasks under shifts, as ordinary training tasks.

On benign tasks nearly every method is as good as the best fixed rate. The shifts are what users
meet: inputs that nobody scaled, labels that are wrong, batches of another size, bad first weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from experiments.bench.models import batch_norm_mlp, small_cnn, small_transformer
from lrsearch import Split, TaskData, TrainingTask
from lrsearch.errors import InvalidArgumentError, require_choice
from lrsearch.tasks.builtin import build_mlp
from lrsearch.tasks.datasets import load_dataset

Build = Callable[[TaskData], nn.Module]


@dataclass(frozen=True, slots=True)
class BaseTask:
    """A task before any shift.

    Attributes:
        dataset: name as ``load_dataset`` takes it.
        build: the model.
        epochs, batch_size: the budget.
        rows: most training rows, drawn by the seed, and a quarter as many for validation; None
            for all.
        embedded: whether the data come with scikit-learn.
    """

    dataset: str
    build: Build
    epochs: int
    batch_size: int
    rows: int | None = None
    embedded: bool = True

    @property
    def regression(self) -> bool:
        """Whether values are predicted, not classes."""
        return self.dataset in ("diabetes", "housing")


def _mlp(*hidden: int) -> Build:
    return partial(build_mlp, hidden=hidden)


BASES: Final = {
    "digits-linear": BaseTask("digits", _mlp(), 10, 32),
    "digits-mlp": BaseTask("digits", _mlp(64), 10, 32),
    "digits-cnn": BaseTask("digits", small_cnn, 10, 32),
    "digits-transformer": BaseTask("digits", small_transformer, 10, 32),
    "digits-deep": BaseTask("digits", _mlp(*(64,) * 6), 10, 32),
    "digits-batchnorm": BaseTask("digits", batch_norm_mlp, 10, 32),
    "breast-cancer-linear": BaseTask("breast-cancer", _mlp(), 30, 32),
    "breast-cancer-mlp": BaseTask("breast-cancer", _mlp(32), 30, 32),
    "wine-linear": BaseTask("wine", _mlp(), 50, 16),
    "wine-mlp": BaseTask("wine", _mlp(32), 50, 16),
    "diabetes-linear": BaseTask("diabetes", _mlp(), 40, 32),
    "diabetes-mlp": BaseTask("diabetes", _mlp(32, 32), 40, 32),
    "mnist-linear": BaseTask("mnist", _mlp(), 8, 64, rows=4000, embedded=False),
    "housing-mlp": BaseTask("housing", _mlp(32, 32), 8, 64, rows=4000, embedded=False),
}


@dataclass(frozen=True, slots=True)
class Shift:
    """What is done to a task.

    Attributes:
        raw: inputs in the data's own units, not standardised.
        scale: of the inputs.
        noise: share of the training labels drawn anew; of values, the noise's deviation.
        batch_size: rows a step; None for the task's own.
        rarest: training rows of the rarest class as a share of the most frequent's, classes between
            in geometric steps; 1 for no imbalance.
        weight_scale: of the first weights.
        epochs: budget as a multiple of the task's own.
        loss_scale: of the loss.
    """

    raw: bool = False
    scale: float = 1.0
    noise: float = 0.0
    batch_size: int | None = None
    rarest: float = 1.0
    weight_scale: float = 1.0
    epochs: float = 1.0
    loss_scale: float = 1.0


SHIFTS: Final = {
    "none": Shift(),
    "raw inputs": Shift(raw=True),
    "inputs x 0.01": Shift(scale=0.01),
    "inputs x 100": Shift(scale=100.0),
    "label noise": Shift(noise=0.3),
    # The epochs keep a run's steps within a factor of four of the unshifted task's.
    "batch 8": Shift(batch_size=8, epochs=0.5),
    "batch 256": Shift(batch_size=256, epochs=2.0),
    "class imbalance": Shift(rarest=0.1),
    "weights x 3": Shift(weight_scale=3.0),
    "weights x 0.1": Shift(weight_scale=0.1),
    "short budget": Shift(epochs=0.2),
    "loss x 100": Shift(loss_scale=100.0),
}


def shifts_of(base: str) -> tuple[str, ...]:
    """The shifts that mean something for a base task."""
    regression = BASES[base].regression
    return tuple(name for name in SHIFTS if not (regression and SHIFTS[name].rarest < 1.0))


def make_task(
    base: str, shift: str, optimizer: str = "sgd", *, data_dir: str | None = None
) -> TrainingTask:
    """A base task under a shift, to be trained with an optimizer; it can be pickled.

    Args:
        base: one of ``BASES``.
        shift: one of ``shifts_of(base)``.
        optimizer: as ``TrainingTask`` takes it.
        data_dir: folder with the data that are not embedded.

    Raises:
        InvalidArgumentError: if a name is unknown, or the shift has no meaning there.
    """
    require_choice("base", base, tuple(BASES))
    require_choice("shift", shift, tuple(SHIFTS))
    if shift not in shifts_of(base):
        raise InvalidArgumentError(f"shift must be one of {shifts_of(base)} with {base}: {shift!r}")
    what, how = BASES[base], SHIFTS[shift]
    return TrainingTask(
        name=f"{base}, {shift}",
        data=partial(_shifted_data, base, shift, data_dir=data_dir),
        model=partial(_shifted_model, base, shift),
        loss="mse" if what.regression else "cross_entropy",
        metric="mse" if what.regression else "accuracy",
        epochs=max(1, round(what.epochs * how.epochs)),
        batch_size=how.batch_size or what.batch_size,
        optimizer=optimizer,
        loss_scale=how.loss_scale,
    )


def _shifted_model(base: str, shift: str, data: TaskData) -> nn.Module:
    model = BASES[base].build(data)
    factor = SHIFTS[shift].weight_scale
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # weights; not biases, nor the gains of normalisations
                parameter.mul_(factor)
    return model


def _shifted_data(base: str, shift: str, seed: int, *, data_dir: str | None) -> TaskData:
    what, how = BASES[base], SHIFTS[shift]
    data = load_dataset(what.dataset, seed, data_dir=data_dir, scaled=not how.raw)
    generator = np.random.default_rng([seed, 0])
    train, validation = data.train, data.validation
    if how.rarest < 1.0:
        train = _imbalanced(data, how.rarest, generator)
    if what.rows is not None:
        train = _some_rows(train, what.rows, generator)
        validation = _some_rows(validation, what.rows // 4, generator)
    if how.noise:
        train = _noisy(train, data.outputs, how.noise, generator)
    splits = [
        Split(part.inputs * how.scale, part.targets) for part in (train, validation, data.test)
    ]
    return replace(data, train=splits[0], validation=splits[1], test=splits[2])


def _rows(split: Split, chosen: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Split:
    index = torch.from_numpy(chosen)
    return Split(split.inputs[index], split.targets[index])


def _some_rows(split: Split, most: int, generator: np.random.Generator) -> Split:
    return _rows(split, np.sort(generator.permutation(len(split))[:most]))


def _imbalanced(data: TaskData, rarest: float, generator: np.random.Generator) -> Split:
    """Fewer training rows of each class than of the one before it, down to the share of the last.

    The first class has what each class has under any seed (a stratified split in three rounds by
    less than 2 rows), so that all seeds have equally many rows.
    """
    splits = (data.train, data.validation, data.test)
    labels = np.concatenate([part.targets.numpy() for part in splits])
    most = int(np.bincount(labels).min() * len(data.train) / len(labels)) - 2
    kept = []
    for label in range(data.outputs):
        rows = np.flatnonzero(data.train.targets.numpy() == label)
        share = rarest ** (label / (data.outputs - 1))
        kept.append(generator.permutation(rows)[: max(1, round(share * most))])
    return _rows(data.train, np.sort(np.concatenate(kept)))


def _noisy(split: Split, classes: int, noise: float, generator: np.random.Generator) -> Split:
    """Wrong labels among the training rows; of values, noise of that share of their deviation."""
    targets: Tensor = split.targets
    rows = len(split)
    if targets.is_floating_point():
        wrong = torch.from_numpy(generator.standard_normal(tuple(targets.shape))).float()
        return Split(split.inputs, targets + noise * targets.std() * wrong)
    drawn = torch.from_numpy(generator.integers(classes, size=rows))
    redrawn = torch.from_numpy(generator.random(rows) < noise)
    return Split(split.inputs, torch.where(redrawn, drawn, targets))
