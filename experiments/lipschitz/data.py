"""The data of [L], sections 7.1 and 7.2, as its experiments train on them."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrsearch import Split
from lrsearch.errors import InvalidArgumentError, MissingDataError, require_choice
from lrsearch.tasks.sources import read_arrays

Floats = NDArray[np.float64]

# Archives beside those that the package itself knows, and the arrays wanted of them.
FILES: Final = {
    "boston": ("boston_housing.npz", ("X", "y")),
    "energy": ("energy_efficiency.npz", ("X", "Y")),
    "news": ("online_news_part.npz", ("X", "y", "timedelta")),
    "covertype": ("covertype_sample.npz", ("X", "y")),
}
NAMES: Final = (*FILES, "california", "breast-cancer", "iris", "digits")
# What stands for what the paper had, where that is not at hand.
PARTS: Final = {
    "news": "9 874 of 39 644 articles, 8 January to 15 July 2013",
    "covertype": "79 222 random rows of the 495 141 of classes 1 and 2; not the first 100 000",
}
# The notebook takes ten columns after it has put the bias in front, so nine features.
COVERTYPE_FEATURES: Final = 9


class Sample(NamedTuple):
    """Raw features, shape (rows, features), and targets, shape (rows,): values or class indices."""

    inputs: Floats
    targets: Floats


@lru_cache(maxsize=len(NAMES))
def load(name: str, data_dir: str | None) -> Sample:
    """A data set of Tables 1 and 2, all but MNIST.

    * "boston", "california", "energy" (heating load), "news" (59 features; shares);
    * "breast-cancer", "covertype" (classes 1 and 2 as 0 and 1; nine features): binary;
    * "iris", "digits": raw.

    Args:
        name: one of ``NAMES``.
        data_dir: folder to look in first; then the folder in ``$LRSEARCH_DATA``.

    Raises:
        MissingDataError: if its file is not at hand, or is damaged.
        InvalidArgumentError: if the name is unknown.
    """
    require_choice("dataset", name, NAMES)
    if name == "california":
        arrays = read_arrays("housing", data_dir)
        return _sample(arrays["X"], arrays["y"])
    if name in FILES:
        return _from_file(name, data_dir)
    from sklearn import datasets

    loaders = {
        "breast-cancer": datasets.load_breast_cancer,
        "iris": datasets.load_iris,
        "digits": datasets.load_digits,
    }
    return _sample(*loaders[name](return_X_y=True))


def _from_file(name: str, data_dir: str | None) -> Sample:
    file, wanted = FILES[name]
    arrays = _read(file, wanted, data_dir)
    if name == "energy":
        return _sample(arrays["X"], arrays["Y"][:, 0])
    if name == "news":  # the file keeps the first predictive column, timedelta, apart
        return _sample(np.column_stack([arrays["timedelta"], arrays["X"]]), arrays["y"])
    if name == "covertype":
        rows = arrays["y"] < 3
        return _sample(arrays["X"][rows, :COVERTYPE_FEATURES], arrays["y"][rows] - 1)
    return _sample(arrays["X"], arrays["y"])


def _read(file: str, wanted: tuple[str, ...], data_dir: str | None) -> dict[str, NDArray[Any]]:
    for place in (data_dir, os.environ.get("LRSEARCH_DATA")):
        if place and (path := Path(place, file)).is_file():
            try:
                # Opened here: numpy leaves its own file open where the archive is damaged.
                with path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
                    return {key: archive[key] for key in wanted}
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
                raise MissingDataError(f"{path} cannot be read ({error})") from error
    raise MissingDataError(
        f"{file} is missing: name the folder with the data by --data-dir or LRSEARCH_DATA"
    )


def _sample(inputs: NDArray[Any], targets: NDArray[Any]) -> Sample:
    return Sample(np.asarray(inputs, np.float64), np.asarray(targets, np.float64))


def scaled(inputs: Floats, *, bias: int = 1) -> Floats:
    """Columns of ones in front, then each column divided by its sum ([L] 7.1).

    Args:
        inputs: shape (rows, features).
        bias: columns of ones; the notebook has two for Online News.

    Returns:
        Shape (rows, bias + features), each column summing to 1.

    Raises:
        InvalidArgumentError: if a column sums to 0.
    """
    with_bias = np.column_stack([np.ones((len(inputs), bias)), inputs])
    sums = with_bias.sum(axis=0)
    if not np.all(sums != 0.0):
        raise InvalidArgumentError(
            f"a feature sums to 0 and cannot be scaled to 1: column {int(np.argmin(sums != 0.0))}"
        )
    return with_bias / sums


@lru_cache(maxsize=1)
def mnist(data_dir: str | None) -> tuple[Split, Split]:
    """Train and test images, each pixel standardised on train, constant ones 0 (the notebook).

    Raises:
        MissingDataError: if the files are nowhere to be found.
    """
    arrays = read_arrays("mnist", data_dir)
    train, test = (
        torch.tensor(arrays[f"{part}_images"]).flatten(1).double() for part in ("train", "test")
    )
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0)
    deviation[deviation == 0.0] = 1.0

    def split(pixels: Tensor, part: str) -> Split:
        labels = torch.tensor(arrays[f"{part}_labels"]).long()
        return Split(pixels.sub_(mean).div_(deviation).float(), labels)

    return split(train, "train"), split(test, "test")
