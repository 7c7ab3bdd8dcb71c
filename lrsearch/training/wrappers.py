"""Models in compilation and parallel wrappers: what lies within, what processes agree on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import inf

import torch
from torch import Tensor, nn

from lrsearch.errors import InvalidArgumentError, InvalidTypeError


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, DataParallel and DistributedDataParallel."""
    *_, innermost = _unwrapping(model)
    return innermost


def largest_of_all(model: nn.Module, numbers: Sequence[float]) -> list[float]:
    """Each number's largest value over the processes that train the model together.

    They must set the same rate, but each sees its own share of the data. NaN becomes infinity,
    since reductions do not agree on it. Waits for the others. Without DistributedDataParallel or
    ``fully_shard`` the numbers come back as they are.
    """
    for module in _unwrapping(model):
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return _reduced(numbers, next(module.parameters()).device, module.process_group)
        if _is_sharded(module):
            return _reduced(numbers, next(module.parameters()).device, None)
    return list(numbers)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over processes (``fully_shard``) in full; others as they are."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


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


def _unwrapping(model: nn.Module) -> Iterator[nn.Module]:
    """The model, then what it wraps, and so on."""
    inner: nn.Module | None = model
    while inner is not None:
        _is_sharded(inner)  # refuses what cannot be looked into
        yield inner
        if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        else:
            inner = getattr(inner, "_orig_mod", None)


def _is_sharded(module: nn.Module) -> bool:
    """Whether ``torch.distributed.fsdp.fully_shard`` was applied."""
    # Nobody shards without having loaded it, and loading it is slow.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return False
    if isinstance(module, fsdp.FullyShardedDataParallel):
        raise InvalidArgumentError(
            "model must not be a FullyShardedDataParallel, whose parameters are flat pieces: "
            "use torch.distributed.fsdp.fully_shard"
        )
    return isinstance(module, fsdp.FSDPModule)


def _reduced(
    numbers: Sequence[float],
    device: torch.device,
    group: torch.distributed.ProcessGroup | None,
) -> list[float]:
    clean = [inf if number != number else number for number in numbers]
    found = torch.tensor(clean, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=group)
    return [float(number) for number in found.tolist()]
