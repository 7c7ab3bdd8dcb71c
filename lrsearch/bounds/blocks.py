"""Read inputs of any kind as blocks of rows: the one place where data enter the bounds.

Arrays, tensors, Datasets and iterables of batches all become the same thing, a :class:`Blocks`,
that can be walked through again and again. No framework is imported: whatever has ``detach`` is
treated as a tensor, whatever has ``__array__`` as an array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lrsearch.errors import InvalidArgumentError, InvalidTypeError

Matrix: TypeAlias = NDArray[np.float64]

BLOCK_ELEMENTS = 2**21
"""Numbers held as float64 at one time while walking: 16 MB."""

CACHED_ELEMENTS = 2**17
"""The same for walks that do little with each number: 1 MB stays in a core's cache, where it is
read several times (2 to 3 x faster than 16 MB)."""

_ALLOWED = "a numpy array, a torch tensor, a map-style Dataset, or an iterable of batches"


class Blocks:
    """Rows of a data set, flattened to (samples, features), walked in float64 blocks.

    Every walk gives the same samples: the length of each is compared with the first. A one-shot
    iterator (a generator) is kept in memory, in its own dtype, when it arrives.

    Args:
        inputs: array or tensor of shape (samples, ...); a map-style Dataset of samples or of
            (sample, target) pairs; or an iterable of batches, or of (batch, target) pairs, each
            batch of shape (rows, ...).

    Raises:
        TypeError: if ``inputs`` is none of these, or not real numbers.
        ValueError: if a part has the wrong dimensions, or there are no samples.
    """

    def __init__(self, inputs: object) -> None:
        self._parts = _parts_of(inputs)
        self._samples: int | None = None
        self.features = 0

    def __iter__(self) -> Iterator[Matrix]:
        """Blocks of shape (rows, features), about ``BLOCK_ELEMENTS`` numbers each."""
        return self.walk(BLOCK_ELEMENTS)

    def walk(self, elements: int) -> Iterator[Matrix]:
        """Blocks of shape (rows, features), about ``elements`` numbers each."""
        samples = 0
        for block in _regrouped(self._checked_parts(elements), elements):
            samples += len(block)
            yield block
        if samples == 0:
            raise InvalidArgumentError("inputs must hold samples, got none")
        if self._samples is not None and samples != self._samples:
            raise InvalidArgumentError(
                f"inputs must give the same samples at every pass, got {self._samples} and then "
                f"{samples}; pass an array, a Dataset, or an iterable that can be walked again"
            )
        self._samples = samples

    def _checked_parts(self, elements: int) -> Iterator[Matrix]:
        for part in self._parts(elements):
            if not self.features:
                self.features = part.shape[1]
            if part.shape[1] != self.features:
                raise InvalidArgumentError(
                    f"inputs must have the same number of features throughout, got "
                    f"{self.features} and {part.shape[1]}"
                )
            yield part


def _parts_of(inputs: object) -> Callable[[int], Iterator[Matrix]]:
    """How to walk the inputs from the start, in parts of no more than so many numbers."""
    if _is_array(inputs):
        return lambda elements: _array_parts(inputs, elements)
    if isinstance(inputs, (str, bytes, Mapping)):
        raise InvalidTypeError(f"inputs must be {_ALLOWED}, got {type(inputs).__name__}")
    if _is_dataset(inputs):
        return lambda elements: _dataset_parts(inputs, elements)
    if isinstance(inputs, Iterator):
        kept = [_input_of(batch) for batch in inputs]
        return lambda elements: _batch_parts(kept, elements)
    if isinstance(inputs, Iterable):
        return lambda elements: _batch_parts(inputs, elements)
    raise InvalidTypeError(f"inputs must be {_ALLOWED}, got {type(inputs).__name__}")


def _is_array(value: object) -> bool:
    return hasattr(value, "shape") and (hasattr(value, "detach") or hasattr(value, "__array__"))


def _is_dataset(value: object) -> bool:
    """Samples by index: a Dataset. Lists and tuples are taken for batches."""
    indexed = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return indexed and not isinstance(value, Sequence)


def _array_parts(array: Any, elements: int) -> Iterator[Matrix]:
    shape = tuple(array.shape)
    if len(shape) < 2:
        raise InvalidArgumentError(f"inputs must have shape (samples, features), got {shape}")
    rows = _rows_per_block(int(np.prod(shape[1:])), elements)
    # A pandas frame takes rows by position through its array only.
    sliceable = array if isinstance(array, np.ndarray) or _is_tensor(array) else np.asarray(array)
    for start in range(0, shape[0], rows):
        yield as_rows(sliceable[start : start + rows])


def _dataset_parts(dataset: Any, elements: int) -> Iterator[Matrix]:
    rows = 0
    held: list[Matrix] = []
    for index in range(len(dataset)):
        sample = _as_float64(_input_of(dataset[index])).reshape(-1)
        rows = rows or _rows_per_block(sample.size, elements)
        if held and sample.size != held[0].size:
            raise InvalidArgumentError(
                f"inputs must have the same number of features throughout, got "
                f"{held[0].size} and {sample.size} (sample {index})"
            )
        held.append(sample)
        if len(held) == rows:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)


def _batch_parts(batches: Iterable[Any], elements: int) -> Iterator[Matrix]:
    for item in batches:
        batch = _input_of(item)
        if not _is_array(batch):
            raise InvalidTypeError(
                f"inputs must give arrays or tensors as batches, got {type(batch).__name__}; "
                f"turn nested lists into an array first"
            )
        if len(batch.shape) < 2:
            raise InvalidArgumentError(
                f"inputs must give batches of shape (rows, features), got {tuple(batch.shape)}; "
                f"wrap single samples in a DataLoader"
            )
        yield from _array_parts(batch, elements)


def _input_of(item: Any) -> Any:
    """The input of an (input, target) pair; anything else as it is."""
    if isinstance(item, (tuple, list)):
        if not item:
            raise InvalidArgumentError("inputs must give (input, target) pairs, got an empty one")
        return item[0]
    return item


def as_rows(array: Any, name: str = "inputs") -> Matrix:
    """An array or tensor of shape (samples, ...) as float64 of shape (samples, features).

    Raises:
        TypeError: if it is no array of real numbers.
        ValueError: if it has fewer than two dimensions.
    """
    values = _as_float64(array, name)
    if values.ndim < 2:
        raise InvalidArgumentError(f"{name} must have shape (samples, ...), got {values.shape}")
    return values.reshape(len(values), int(np.prod(values.shape[1:])))


def _as_float64(array: Any, name: str = "inputs") -> Matrix:
    """Copy to a float64 array on the host, whatever the dtype or the device was."""
    if _is_tensor(array):
        if array.is_complex():
            raise InvalidTypeError(f"{name} must be real numbers, got dtype {array.dtype}")
        # Complete the conversion in torch: numpy knows no bfloat16.
        array = array.detach().cpu().double().numpy()
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise InvalidTypeError(f"{name} must be real numbers, got dtype {values.dtype}")
    return values.astype(np.float64, copy=False)


def _is_tensor(value: object) -> bool:
    return hasattr(value, "detach") and hasattr(value, "is_complex")


def _rows_per_block(features: int, elements: int) -> int:
    if features == 0:
        raise InvalidArgumentError("inputs must have at least one feature, got none")
    return max(1, elements // features)


def _regrouped(parts: Iterator[Matrix], most: int) -> Iterator[Matrix]:
    """Join small parts until a block is full: matrix products like tall blocks."""
    held: list[Matrix] = []
    elements = 0
    for part in parts:
        if part.size == 0:
            continue
        if held and elements + part.size > most:
            yield _joined(held)
            held, elements = [], 0
        held.append(part)
        elements += part.size
    if held:
        yield _joined(held)


def _joined(parts: list[Matrix]) -> Matrix:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
