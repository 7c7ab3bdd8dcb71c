"""What is built in: one entry per task. Nothing heavy, so that it can be listed at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """One line of the list of built-in tasks.

    Attributes:
        name: what ``load_task`` takes.
        dataset: key of the data set.
        model: the model, in words.
        loss: one of the losses of a ``TrainingTask``.
        metric: "accuracy" or "mse".
        samples: rows of all splits together.
        features: inputs per row.
        description: one sentence.
    """

    name: str
    dataset: str
    model: str
    loss: str
    metric: Literal["accuracy", "mse"]
    samples: int
    features: int
    description: str


def _classification(
    name: str, dataset: str, model: str, samples: int, features: int, text: str
) -> TaskEntry:
    return TaskEntry(name, dataset, model, "cross_entropy", "accuracy", samples, features, text)


def _regression(
    name: str, dataset: str, model: str, samples: int, features: int, text: str
) -> TaskEntry:
    return TaskEntry(name, dataset, model, "mse", "mse", samples, features, text)


CATALOGUE: Final[Mapping[str, TaskEntry]] = {
    entry.name: entry
    for entry in (
        _classification(
            "digits-logistic", "digits", "softmax regression", 1797, 64, "8x8 handwritten digits."
        ),
        _classification(
            "digits-mlp", "digits", "MLP 64-128-64-10", 1797, 64, "8x8 handwritten digits."
        ),
        _classification(
            "breast-cancer-logistic",
            "breast-cancer",
            "softmax regression",
            569,
            30,
            "Benign or malignant, from cell measurements.",
        ),
        _classification(
            "breast-cancer-mlp",
            "breast-cancer",
            "MLP 30-64-2",
            569,
            30,
            "Benign or malignant, from cell measurements.",
        ),
        _classification(
            "wine-logistic", "wine", "softmax regression", 178, 13, "Three cultivars of wine."
        ),
        _classification("wine-mlp", "wine", "MLP 13-64-3", 178, 13, "Three cultivars of wine."),
        _regression(
            "diabetes-linear",
            "diabetes",
            "linear regression",
            442,
            10,
            "Progression after a year, standardised.",
        ),
        _regression(
            "diabetes-mlp",
            "diabetes",
            "MLP 10-64-64-1",
            442,
            10,
            "Progression after a year, standardised.",
        ),
        _classification(
            "mnist-logistic",
            "mnist",
            "softmax regression",
            70000,
            784,
            "28x28 handwritten digits, as in ExpTest IV.A.",
        ),
        _regression(
            "housing-mlp",
            "housing",
            "MLP 8-32-32-1",
            20640,
            8,
            "California house values in 100k$, full batch, as in ExpTest IV.B.",
        ),
    )
}
