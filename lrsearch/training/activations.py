"""Largest norms of a layer's inputs and outputs, on their device, while a model trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, nan, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lrsearch.errors import InvalidArgumentError, InvalidTypeError


class ActivationNorms:
    """Running maxima of the Frobenius norms of a linear layer's batches.

    Holds no optimizer and no model, so that a model which is copied or saved takes little along.

    Args:
        outputs: note the norms of the outputs as well.
        training_only: leave out passes in eval mode or without gradients.
    """

    def __init__(self, *, outputs: bool = False, training_only: bool = True) -> None:
        self.rows = 0
        self._outputs = outputs
        self._training_only = training_only
        # One entry per device: the replicas of nn.DataParallel run in threads.
        self._inputs_max: dict[torch.device, Tensor] = {}
        self._outputs_max: dict[torch.device, Tensor] = {}

    def attach(self, layer: nn.Linear) -> list[RemovableHandle]:
        """Start to listen to a layer."""
        handles = [layer.register_forward_pre_hook(self._see_inputs, with_kwargs=True)]
        if self._outputs:
            handles.append(layer.register_forward_hook(self._see_outputs))
        return handles

    def k_z(self) -> float:
        """Largest norm of a batch of inputs; NaN if any was. Waits for the device."""
        return _largest(self._inputs_max)

    def k_a(self) -> float:
        """Largest norm of a batch of outputs; NaN if any was. Waits for the device."""
        return _largest(self._outputs_max)

    def clear(self) -> None:
        """Forget everything seen."""
        self.rows = 0
        self._inputs_max.clear()
        self._outputs_max.clear()

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far; plain numbers."""
        seen = self.rows > 0
        return {
            "rows": self.rows,
            "k_z": self.k_z() if seen else None,
            "k_a": self.k_a() if seen and self._outputs else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self.clear()
        self.rows = int(state["rows"])
        host = torch.device("cpu")
        for name, maxima in (("k_z", self._inputs_max), ("k_a", self._outputs_max)):
            if state[name] is not None:
                maxima[host] = torch.tensor(state[name], dtype=torch.float64)

    def _see_inputs(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._listens(layer):
            return
        batch = args[0] if args else kwargs["input"]
        self.rows = max(self.rows, prod(batch.shape[:-1]))
        _keep_largest(self._inputs_max, batch)

    def _see_outputs(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._listens(layer):
            _keep_largest(self._outputs_max, output)

    def _listens(self, layer: nn.Module) -> bool:
        return not self._training_only or (layer.training and torch.is_grad_enabled())


def frobenius_norm(tensor: Tensor) -> Tensor:
    """Root of the sum of squares, in float32 or better, where the tensor lives."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    norm: Tensor = torch.linalg.vector_norm(tensor.detach(), dtype=wide)
    return norm


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, DataParallel and DistributedDataParallel."""
    *_, innermost = _unwrapping(model)
    return innermost


def largest_of_all(model: nn.Module, numbers: Sequence[float]) -> list[float]:
    """Each number's largest value over the processes that train the model together.

    They must set the same rate, but each sees its own share of the data. NaN becomes infinity,
    since reductions do not agree on it. Waits for the others. Without DistributedDataParallel the
    numbers come back as they are.
    """
    for module in _unwrapping(model):
        if isinstance(module, nn.parallel.DistributedDataParallel):
            clean = [inf if number != number else number for number in numbers]
            device = next(module.parameters()).device
            found = torch.tensor(clean, dtype=torch.float64, device=device)
            torch.distributed.all_reduce(
                found, op=torch.distributed.ReduceOp.MAX, group=module.process_group
            )
            return [float(number) for number in found.tolist()]
    return list(numbers)


def _unwrapping(model: nn.Module) -> Iterator[nn.Module]:
    """The model, then what it wraps, and so on."""
    inner: nn.Module | None = model
    while inner is not None:
        yield inner
        if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        else:
            inner = getattr(inner, "_orig_mod", None)


def last_linear(model: nn.Module, layer: str | nn.Module | None = None) -> nn.Linear:
    """The layer that makes the outputs: the last ``nn.Linear`` in the order of the modules.

    Args:
        model: where to look; wrappers are looked through.
        layer: the layer itself, or its name as in ``model.named_modules()``.

    Raises:
        ValueError: if there is none, or none of this name.
        TypeError: if ``layer`` is something else.
    """
    linear = {n: m for n, m in unwrapped(model).named_modules() if isinstance(m, nn.Linear)}
    if isinstance(layer, nn.Linear):
        return layer
    if isinstance(layer, str):
        if layer not in linear:
            raise InvalidArgumentError(
                f"layer must name an nn.Linear of the model, got {layer!r}; it has {list(linear)}"
            )
        return linear[layer]
    if layer is not None:
        raise InvalidTypeError(
            f"layer must be an nn.Linear or a layer's name, got {type(layer).__name__}"
        )
    if not linear:
        raise InvalidArgumentError(
            f"model must have an nn.Linear, whose inputs bound the gradient; "
            f"{type(model).__name__} has none"
        )
    return list(linear.values())[-1]


def _keep_largest(maxima: dict[torch.device, Tensor], batch: Tensor) -> None:
    """Never waits for the device; NaN stays."""
    norm = frobenius_norm(batch)
    known = maxima.get(batch.device)
    maxima[batch.device] = norm if known is None else torch.maximum(known, norm)


def _largest(maxima: Mapping[torch.device, Tensor]) -> float:
    found = [float(each) for each in maxima.values()]
    return nan if any(each != each for each in found) else max(found, default=nan)
