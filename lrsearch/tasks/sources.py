"""Where data files come from: the one lookup.

In this order: the folder that was named, the folder in ``$LRSEARCH_DATA``, the cache
(``$XDG_CACHE_HOME/lrsearch`` or ``~/.cache/lrsearch``), and the public source: through
scikit-learn, or the archive of CIFAR's own page. What was downloaded is checked against a sha256
of its decoded numbers (CIFAR: the published md5 of the archive) and stored in the cache.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from lrsearch.errors import InvalidArgumentError, MissingDataError, require_choice
from lrsearch.tasks.cifar import CIFAR10, CIFAR100, Array, Arrays, Cifar

PathLike: TypeAlias = str | os.PathLike[str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Source:
    """One data set that does not come with scikit-learn.

    Attributes:
        title: what people call it.
        keys: names of its arrays, in the order in which the checksum takes them.
        archive: name of the npz file, in the cache and in data folders.
        files: what a user is told to provide.
        read: reads the arrays from a folder; None if they are not there.
        fetch: gets them from the public source.
        sha256: of the bytes of the arrays, joined in the order of ``keys``; "" where ``fetch``
            checks what came.
        present: whether a folder has the files that ``read`` takes beside the archive.
    """

    title: str
    keys: tuple[str, ...]
    archive: str
    files: str
    read: Callable[[Path], Arrays | None]
    fetch: Callable[[], Arrays]
    sha256: str = ""
    present: Callable[[Path], bool] = lambda folder: False


def read_arrays(dataset: str, data_dir: PathLike | None = None) -> Arrays:
    """The arrays of a data set, from the first place that has them.

    Args:
        dataset: "mnist": "train_images" (n, 28, 28), "train_labels" (n,), "test_images",
            "test_labels", all uint8. "cifar10" and "cifar100": the same keys, images of shape
            (n, 3, 32, 32). "housing": "X" (n, 8) and "y" (n,), float64, y in 100k$.
        data_dir: an existing folder to look in first.

    Raises:
        MissingDataError: in one line, if no place has them and the download failed, a file is
            damaged, or what came is not what is known.
        ValueError: if ``data_dir`` is no folder, or ``dataset`` is unknown.
    """
    source = _source(dataset)
    places = _places(data_dir)
    for place in places:
        arrays = source.read(place)
        if arrays is not None:
            return arrays
    logger.info("downloading %s, which is in none of %s", source.title, _listed(places))
    try:
        arrays = source.fetch()
    except MissingDataError:
        raise  # it came, and is not what is known
    except Exception as error:
        raise MissingDataError(
            f"{source.title} data are missing: no {source.files} in "
            f"{_listed(places)}{_incomplete(places) if dataset == 'mnist' else ''}, and the "
            f"download failed ({type(error).__name__}); put the files into one of these folders, "
            f"or set LRSEARCH_DATA to the folder that has them"
        ) from error
    if source.sha256:
        _verify(source, arrays)
    _store(cache_dir() / source.archive, arrays)
    return arrays


def at_hand(dataset: str, data_dir: PathLike | None = None) -> bool:
    """Are the arrays of ``dataset`` on this machine? Looks for files; reads and downloads nothing.

    Raises:
        ValueError: if ``data_dir`` is no folder, or ``dataset`` is unknown.
    """
    source = _source(dataset)
    return any(
        (place / source.archive).is_file() or source.present(place) for place in _places(data_dir)
    )


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/lrsearch`` if that is an absolute path, else ``~/.cache/lrsearch``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "lrsearch"


def check_data_dir(data_dir: PathLike) -> Path:
    """The folder as a path.

    Raises:
        ValueError: if it is no folder.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise InvalidArgumentError(f"data_dir must be an existing folder, got {str(data_dir)!r}")
    return folder


def _places(data_dir: PathLike | None) -> tuple[Path, ...]:
    named = [] if data_dir is None else [check_data_dir(data_dir)]
    environment = os.environ.get("LRSEARCH_DATA")
    if environment:
        named.append(Path(environment).expanduser())
    return (*named, cache_dir())


def _listed(places: tuple[Path, ...]) -> str:
    return ", ".join(str(place) for place in places)


# --- MNIST ---------------------------------------------------------------------------------------

_IDX: Final = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def _read_mnist(folder: Path) -> Arrays | None:
    files = _idx_files(folder)
    if len(files) < len(_IDX):
        return _read_archive(folder / "mnist.npz", tuple(_IDX))
    arrays = {key: _read_idx(path) for key, path in files.items()}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise MissingDataError(
                f"MNIST files in {folder} do not fit together: {part} images have shape "
                f"{images.shape}, labels {labels.shape}; download them again"
            )
    return arrays


def _idx_files(folder: Path) -> dict[str, Path]:
    """Those of the four idx files that are there, with or without ``mnist-`` and ``.gz``."""
    found = {}
    for key, name in _IDX.items():
        variants = (
            folder / f"{prefix}{stem}{suffix}"
            for prefix in ("", "mnist-")
            for stem in (name, name.replace("-idx", ".idx"))
            for suffix in ("", ".gz")
        )
        path = next((variant for variant in variants if variant.is_file()), None)
        if path is not None:
            found[key] = path
    return found


def _read_idx(path: Path) -> Array:
    """Decode an idx file of unsigned bytes: 0, 0, 8, dimensions, then each size as big-endian."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        zero, kind, dimensions = struct.unpack(">HBB", content[:4])
        sizes = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        if (zero, kind) != (0, 8):
            raise ValueError("no idx file of unsigned bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise _damaged(path, error) from error


def _fetch_mnist() -> Arrays:
    from sklearn.datasets import fetch_openml

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # scikit-learn warns at each retry; the outcome is what is told.
        warnings.simplefilter("ignore")
        pixels, labels = fetch_openml(
            "mnist_784", version=1, as_frame=False, return_X_y=True, data_home=folder, n_retries=1
        )
    images = np.asarray(pixels).astype(np.uint8).reshape(-1, 28, 28)
    digits = np.asarray(labels).astype(np.uint8)
    return {
        "train_images": images[:60000],
        "train_labels": digits[:60000],
        "test_images": images[60000:],
        "test_labels": digits[60000:],
    }


def _incomplete(places: tuple[Path, ...]) -> str:
    """What a folder lacks that has some of the idx files."""
    notes = [
        f"{place} lacks {', '.join(name for key, name in _IDX.items() if key not in found)}"
        for place in places
        if (found := _idx_files(place))
    ]
    return f" ({'; '.join(notes)})" if notes else ""


# --- California Housing --------------------------------------------------------------------------


def _read_housing(folder: Path) -> Arrays | None:
    arrays = _read_archive(folder / "california_housing.npz", ("X", "y"))
    if arrays is not None and (arrays["X"].ndim != 2 or len(arrays["X"]) != len(arrays["y"])):
        raise MissingDataError(
            f"{folder / 'california_housing.npz'} must hold X of shape (n, 8) and y of shape (n,), "
            f"got {arrays['X'].shape} and {arrays['y'].shape}"
        )
    return arrays


def _fetch_housing() -> Arrays:
    from sklearn.datasets import fetch_california_housing

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        X, y = fetch_california_housing(data_home=folder, return_X_y=True, n_retries=1)
    return {"X": np.asarray(X, np.float64), "y": np.asarray(y, np.float64)}


# --- CIFAR ---------------------------------------------------------------------------------------

_IMAGES: Final = ("train_images", "train_labels", "test_images", "test_labels")


def _cifar(title: str, name: str, known: Cifar) -> _Source:
    """One of the two sets; its cache is an archive, as that of the others."""

    def read(folder: Path) -> Arrays | None:
        arrays = known.read(folder)
        return _read_archive(folder / f"{name}.npz", _IMAGES) if arrays is None else arrays

    return _Source(
        title=title,
        keys=_IMAGES,
        archive=f"{name}.npz",
        files=f"{known.folder} (with {', '.join(known.train + known.test)})",
        read=read,
        fetch=known.fetch,
        present=lambda folder: known.where(folder) is not None,
    )


# --- Archives and checksums ----------------------------------------------------------------------


def _read_archive(path: Path, keys: tuple[str, ...]) -> Arrays | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in keys}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> MissingDataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return MissingDataError(f"{path} cannot be read ({reason}); delete it, or download it again")


def _verify(source: _Source, arrays: Arrays) -> None:
    digest = checksum(arrays, source.keys)
    if digest != source.sha256:
        raise MissingDataError(
            f"{source.title} data from the public source are not the known ones (sha256 {digest}, "
            f"expected {source.sha256}); put {source.files} into a folder and set LRSEARCH_DATA"
        )


def checksum(arrays: Arrays, keys: tuple[str, ...]) -> str:
    """Sha256 of the arrays' numbers, row by row, little-endian, joined in the order of ``keys``."""
    digest = hashlib.sha256()
    for key in keys:
        array = arrays[key]
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _store(path: Path, arrays: Arrays) -> None:
    """Write the archive in one move, so that no reader ever sees half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **dict(arrays))
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        logger.warning("%s cannot be stored (%s); it will be downloaded again", path, error)


DOWNLOADED: Final = ("mnist", "housing", "cifar10", "cifar100")
"""Data sets that do not come with scikit-learn."""

SOURCES: Final = {
    "mnist": _Source(
        title="MNIST",
        keys=("train_images", "test_images", "train_labels", "test_labels"),
        archive="mnist.npz",
        files="train-images-idx3-ubyte.gz (and the other three idx files)",
        read=_read_mnist,
        fetch=_fetch_mnist,
        sha256="c2069063c1105f2bf96266aef1ff68c6e13bdda7a54e37bf19c16f1db24efc83",
        present=lambda folder: len(_idx_files(folder)) == len(_IDX),
    ),
    "housing": _Source(
        title="California Housing",
        keys=("X", "y"),
        archive="california_housing.npz",
        files="california_housing.npz",
        read=_read_housing,
        fetch=_fetch_housing,
        sha256="f8ce03213e1c375e51c57d02cb41558c30b643325347f1cc0b26ce713ce3a0b7",
    ),
    "cifar10": _cifar("CIFAR-10", "cifar10", CIFAR10),
    "cifar100": _cifar("CIFAR-100", "cifar100", CIFAR100),
}


def _source(dataset: str) -> _Source:
    require_choice("dataset", dataset, DOWNLOADED)
    return SOURCES[dataset]
