"""CIFAR-10 and CIFAR-100 in their public binary layout: no pickle is read.

A record is one label byte (CIFAR-100: coarse, then fine), then 3072 bytes: the red, the green and
the blue plane of 32 x 32 pixels, row by row. Source: A. Krizhevsky, "Learning Multiple Layers of
Features from Tiny Images", 2009; https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lrsearch.errors import MissingDataError

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]

PIXELS: Final = 3 * 32 * 32
_TIMEOUT: Final = 60.0  # seconds without an answer


@dataclass(frozen=True, slots=True)
class Cifar:
    """One of the two sets.

    Attributes:
        folder: of the files, as the public archive names it.
        train, test: files, in order.
        labels: label bytes of a record; the last one is the class.
        classes: number of classes.
        url: of the public archive.
        md5: of the archive, as its page gives it.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: int
    classes: int
    url: str
    md5: str

    def where(self, place: Path) -> Path | None:
        """The folder with all files: below ``place``, or itself; None if neither is."""
        for folder in (place / self.folder, place):
            if all((folder / name).is_file() for name in (*self.train, *self.test)):
                return folder
        return None

    def read(self, place: Path) -> Arrays | None:
        """Images (n, 3, 32, 32) and classes (n,), all uint8; None if ``place`` lacks the files.

        Any number of records is taken: a subset in this layout too.

        Raises:
            MissingDataError: if a file is no such file, or a class is none.
        """
        folder = self.where(place)
        if folder is None:
            return None
        arrays: dict[str, Array] = {}
        for part, names in (("train", self.train), ("test", self.test)):
            records = np.concatenate([self._records(folder / name) for name in names])
            arrays[f"{part}_images"] = records[:, self.labels :].reshape(-1, 3, 32, 32)
            arrays[f"{part}_labels"] = np.ascontiguousarray(records[:, self.labels - 1])
        return arrays

    def fetch(self) -> Arrays:
        """From the public source.

        Raises:
            OSError: if it cannot be reached.
            MissingDataError: if what came is not the known archive.
        """
        with tempfile.TemporaryDirectory() as name:
            archive = Path(name, "archive.tar.gz")
            with (
                urllib.request.urlopen(self.url, timeout=_TIMEOUT) as answer,
                archive.open("wb") as file,
            ):
                shutil.copyfileobj(answer, file)
            with archive.open("rb") as file:
                digest = hashlib.file_digest(file, "md5").hexdigest()
            if digest != self.md5:
                raise MissingDataError(
                    f"{self.url} is not the known archive (md5 {digest}, expected {self.md5}); "
                    f"put {self.folder} into a folder and set LRSEARCH_DATA to it"
                )
            with tarfile.open(archive) as opened:
                opened.extractall(name, filter="data")
            arrays = self.read(Path(name))
        if arrays is None:
            raise MissingDataError(f"{self.url} lacks some of {', '.join(self.train + self.test)}")
        return arrays

    def _records(self, path: Path) -> Array:
        length = self.labels + PIXELS
        try:
            content = np.fromfile(path, np.uint8)
        except OSError as error:
            raise MissingDataError(f"{path} cannot be read ({error.strerror})") from error
        if len(content) == 0 or len(content) % length:
            raise MissingDataError(
                f"{path} cannot be read ({len(content)} bytes are no records of {length}); "
                f"delete it, or download it again"
            )
        records = content.reshape(-1, length)
        if int(records[:, self.labels - 1].max()) >= self.classes:
            raise MissingDataError(
                f"{path} cannot be read (a class above {self.classes - 1}); "
                f"delete it, or download it again"
            )
        return records


CIFAR10: Final = Cifar(
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    labels=1,
    classes=10,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)
CIFAR100: Final = Cifar(
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    labels=2,
    classes=100,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
)
