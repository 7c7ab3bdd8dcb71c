"""Small CIFAR sets in the public binary layout, made for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrsearch.tasks.cifar import CIFAR10, CIFAR100, Cifar

SETS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def images(rows: int, classes: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Noise on a tint and a bright row that tell the class, so that something can be learned."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows).astype(np.uint8)
    pixels = rng.integers(0, 120, (rows, 3, 32, 32)).astype(np.uint8)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[label % 3] += np.uint8(60)
        image[:, (3 * label) % 32] = 250
    return pixels, labels


def write_records(path: Path, pixels: NDArray[np.uint8], *labels: NDArray[np.uint8]) -> None:
    """Label bytes, then 3072 bytes, as the public files have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [label[:, None] for label in labels] + [pixels.reshape(len(pixels), 3072)]
    np.concatenate(columns, axis=1).tofile(path)


def write_cifar(place: Path, name: str, train: int = 40, test: int = 20) -> dict[str, object]:
    """A whole set below ``place``; what a reader should find."""
    known: Cifar = SETS[name]
    found: dict[str, object] = {}
    for part, rows, names, seed in (
        ("train", train, known.train, 0),
        ("test", test, known.test, 1),
    ):
        pixels, labels = images(rows, known.classes, seed)
        found[f"{part}_images"], found[f"{part}_labels"] = pixels, labels
        pieces = np.array_split(np.arange(rows), len(names))
        for piece, file in zip(pieces, names, strict=True):
            coarse = [labels[piece] // np.uint8(5)] * (known.labels - 1)
            write_records(place / known.folder / file, pixels[piece], *coarse, labels[piece])
    return found
