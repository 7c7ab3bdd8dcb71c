"""How the built-in tasks are trained: models and recipes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

from torch import nn

from lrsearch.tasks.catalogue import TaskEntry
from lrsearch.tasks.datasets import load_dataset
from lrsearch.tasks.sources import PathLike, check_data_dir
from lrsearch.training.task import TaskData, TrainingTask


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a task needs beside its entry.

    Attributes:
        hidden: widths of the ReLU layers; none for a linear model.
        epochs: passes over the train split.
        batch_size: rows per step; None for full batch.
    """

    hidden: tuple[int, ...]
    epochs: int
    batch_size: int | None


RECIPES: Final = {
    "digits-logistic": Recipe((), 30, 32),
    "digits-mlp": Recipe((128, 64), 30, 32),
    "breast-cancer-logistic": Recipe((), 40, 32),
    "breast-cancer-mlp": Recipe((64,), 40, 32),
    "wine-logistic": Recipe((), 60, 16),
    "wine-mlp": Recipe((64,), 60, 16),
    "diabetes-linear": Recipe((), 60, 32),
    "diabetes-mlp": Recipe((64, 64), 60, 32),
    "mnist-logistic": Recipe((), 5, 32),  # ExpTest IV.A
    "housing-mlp": Recipe((32, 32), 10000, None),  # ExpTest IV.B
}


def build_task(entry: TaskEntry, *, data_dir: PathLike | None = None) -> TrainingTask:
    """The task of an entry; it can be pickled, so that workers can have it.

    Raises:
        ValueError: if ``data_dir`` is no folder.
    """
    # Absolute, since a worker may run in another directory.
    folder = None if data_dir is None else str(check_data_dir(data_dir).resolve())
    recipe = RECIPES[entry.name]
    return TrainingTask(
        name=entry.name,
        data=partial(load_dataset, entry.dataset, data_dir=folder),
        model=partial(build_mlp, hidden=recipe.hidden),
        loss=entry.loss,
        metric=entry.metric,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
    )


def build_mlp(data: TaskData, *, hidden: tuple[int, ...]) -> nn.Sequential:
    """A network of linear layers with ReLU between them, as wide at its ends as the data.

    Args:
        data: gives the number of features and of outputs.
        hidden: widths of the layers between; none for a linear model.
    """
    widths = (data.train.inputs[0].numel(), *hidden, data.outputs)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
