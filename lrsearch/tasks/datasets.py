"""Data sets as train, validation and test tensors: split by a seed, scaled on train alone."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrsearch.errors import require_choice
from lrsearch.tasks.sources import PathLike, read_arrays
from lrsearch.training.task import Split, TaskData

Array: TypeAlias = NDArray[Any]
Kind: TypeAlias = Literal["classification", "regression"]

DATASETS: Final = ("digits", "breast-cancer", "wine", "diabetes", "mnist", "housing")

MNIST_MEAN: Final = 0.1307
MNIST_STD: Final = 0.3081
"""Over all training pixels in [0, 1]; the customary normalisation, and that of [E]'s notebook."""


def load_dataset(
    name: str, seed: int, *, data_dir: PathLike | None = None, scaled: bool = True
) -> TaskData:
    """Read, split and scale a data set.

    Args:
        name: one of ``DATASETS``.
        seed: of the split; equal seeds give equal splits.
        data_dir: folder for "mnist" and "housing"; see :func:`lrsearch.tasks.sources.read_arrays`.
        scaled: whether inputs are scaled as below; else they stay in the data's own units
            (pixels from 0 to 255 or 16). Targets are scaled all the same.

    Returns:
        Float32 inputs of shape (rows, features). Class indices as int64 of shape (rows,), or
        float32 values of shape (rows, 1).

        * "digits", "breast-cancer", "wine": 60/20/20, stratified; inputs standardised.
        * "diabetes": 60/20/20; inputs and targets standardised.
        * "housing": 60/20/20; inputs standardised, targets in 100k$, the unit of [E] Table 3.
        * "mnist": 55k/5k, drawn from the 60k, and the official 10k; all pixels normalised alike.

        Standardised means by the mean and standard deviation of the train split; a feature that is
        constant there is 0 everywhere.

    Raises:
        ValueError: if ``name`` is unknown, or ``data_dir`` is no folder.
        MissingDataError: if the files are nowhere to be found.
    """
    require_choice("dataset", name, DATASETS)
    if name == "mnist":
        return _mnist(seed, data_dir, scaled)
    if name == "housing":
        arrays = read_arrays("housing", data_dir)
        return _regression(name, arrays["X"], arrays["y"], seed, scaled, scale_targets=False)
    inputs, targets = _embedded(name, scaled)
    if name == "diabetes":
        return _regression(name, inputs, targets, seed, scaled, scale_targets=True)
    return _classification(name, inputs, targets, seed, scaled)


def _embedded(name: str, scaled: bool) -> tuple[Array, Array]:
    from sklearn import datasets

    if name == "diabetes" and not scaled:  # scikit-learn's own scaling is not the data's
        return datasets.load_diabetes(return_X_y=True, scaled=False)  # type: ignore[no-any-return]

    loaders = {
        "digits": datasets.load_digits,
        "breast-cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
        "diabetes": datasets.load_diabetes,
    }
    inputs, targets = loaders[name](return_X_y=True)
    return np.asarray(inputs, np.float64), np.asarray(targets)


def split_indices(
    rows: int, seed: int, *, classes: Array | None = None
) -> tuple[Array, Array, Array]:
    """Disjoint row numbers of 60 % train, 20 % validation and 20 % test.

    Args:
        rows: rows to split.
        seed: of the draw.
        classes: class of each row, to keep the classes' shares alike in all three; None for none.
    """
    from sklearn.model_selection import train_test_split

    everything = np.arange(rows)
    rest, test = train_test_split(everything, test_size=0.2, random_state=seed, stratify=classes)
    train, validation = train_test_split(
        rest,
        test_size=0.25,
        random_state=seed,
        stratify=None if classes is None else classes[rest],
    )
    return train, validation, test


def _classification(name: str, inputs: Array, targets: Array, seed: int, scaled: bool) -> TaskData:
    parts = split_indices(len(inputs), seed, classes=targets)
    fed = _standardized(inputs, parts[0]) if scaled else inputs
    train, validation, test = (
        Split(_floats(fed[part]), torch.from_numpy(targets[part].astype(np.int64)))
        for part in parts
    )
    return TaskData(train, validation, test, outputs=len(np.unique(targets)), name=name)


def _regression(
    name: str, inputs: Array, targets: Array, seed: int, scaled: bool, *, scale_targets: bool
) -> TaskData:
    parts = split_indices(len(inputs), seed)
    fed = _standardized(inputs, parts[0]) if scaled else inputs
    column = targets.reshape(-1, 1).astype(np.float64)
    values = _standardized(column, parts[0]) if scale_targets else column
    train, validation, test = (Split(_floats(fed[part]), _floats(values[part])) for part in parts)
    return TaskData(train, validation, test, outputs=1, name=name)


def _standardized(columns: Array, train: Array) -> Array:
    """Every row, by the mean and deviation of the train rows; constant columns become 0."""
    part = columns[train]
    varies = part.max(axis=0) > part.min(axis=0)
    deviation = np.where(varies, part.std(axis=0), 1.0)
    return np.where(varies, (columns - part.mean(axis=0)) / deviation, 0.0)


def _floats(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _mnist(seed: int, data_dir: PathLike | None, scaled: bool) -> TaskData:
    arrays = read_arrays("mnist", data_dir)
    images, labels = arrays["train_images"], arrays["train_labels"]
    order = np.random.default_rng(seed).permutation(len(images))
    held_out = len(images) // 12  # 5000 of 60000
    return TaskData(
        train=_digits(images, labels, np.sort(order[held_out:]), scaled),
        validation=_digits(images, labels, np.sort(order[:held_out]), scaled),
        test=_digits(arrays["test_images"], arrays["test_labels"], slice(None), scaled),
        outputs=10,
        name="mnist",
    )


def _digits(images: Array, labels: Array, rows: Array | slice, scaled: bool) -> Split:
    chosen = images[rows]
    pixels = torch.from_numpy(chosen.reshape(len(chosen), -1).astype(np.float32))
    if scaled:
        pixels.div_(255.0).sub_(MNIST_MEAN).div_(MNIST_STD)
    return Split(pixels, torch.from_numpy(labels[rows].astype(np.int64)))
