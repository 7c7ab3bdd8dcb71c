"""Largest norms of a layer's inputs and outputs, on their device, while a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

NORMS = ("frobenius", "unit")


class ActivationNorms:
    """Running maxima of norms of the batches that pass through a linear layer.

    Holds no optimizer and no model, so that a model which is copied or saved takes little along.

    Args:
        norm: K_z of a batch a of shape (rows, units): "frobenius", as the papers' code; or "unit",
            max_j ‖a_j‖ over the units j, as their text ([L] Eq. 10).
        outputs: note the Frobenius norm of the outputs as well (K_a).
        squares: note max ‖a * a‖_F as well.
        training_only: leave out passes in eval mode or without gradients.
    """

    def __init__(
        self,
        *,
        norm: str = "frobenius",
        outputs: bool = False,
        squares: bool = False,
        training_only: bool = True,
    ) -> None:
        self.rows = 0
        self._norm = frobenius_norm if norm == "frobenius" else largest_unit_norm
        self._squares = squares
        self._training_only = training_only
        # Of each, one entry per device: the replicas of nn.DataParallel run in threads.
        self._maxima: dict[str, dict[torch.device, Tensor]] = {"k_z": {}}
        if outputs:
            self._maxima["k_a"] = {}
        if squares:
            self._maxima["k_squared"] = {}

    def attach(self, layer: nn.Linear) -> list[RemovableHandle]:
        """Start to listen to a layer."""
        handles = [layer.register_forward_pre_hook(self._see_inputs, with_kwargs=True)]
        if "k_a" in self._maxima:
            handles.append(layer.register_forward_hook(self._see_outputs))
        return handles

    def largest(self) -> dict[str, float]:
        """Each norm's largest value: "k_z", and "k_a" and "k_squared" where they are noted.

        NaN where nothing was seen, or any batch gave NaN. Waits for the device.
        """
        return {name: _largest(found) for name, found in self._maxima.items()}

    def clear(self) -> None:
        """Forget everything seen."""
        self.rows = 0
        for found in self._maxima.values():
            found.clear()

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far; plain numbers."""
        return {"rows": self.rows, "largest": self.largest() if self.rows > 0 else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self.clear()
        self.rows = int(state["rows"])
        host = torch.device("cpu")
        for name, value in state["largest"].items():
            if name in self._maxima:
                self._maxima[name][host] = torch.tensor(value, dtype=torch.float64)

    def _see_inputs(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._listens(layer):
            return
        batch = args[0] if args else kwargs["input"]
        self.rows = max(self.rows, prod(batch.shape[:-1]))
        _keep_largest(self._maxima["k_z"], self._norm(batch), batch.device)
        if self._squares:
            _keep_largest(self._maxima["k_squared"], norm_of_squares(batch), batch.device)

    def _see_outputs(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._listens(layer):
            _keep_largest(self._maxima["k_a"], frobenius_norm(output), output.device)

    def _listens(self, layer: nn.Module) -> bool:
        return not self._training_only or (layer.training and torch.is_grad_enabled())


def frobenius_norm(tensor: Tensor) -> Tensor:
    """Root of the sum of squares, in float32 or better, where the tensor lives."""
    norm: Tensor = torch.linalg.vector_norm(tensor.detach(), dtype=_wide(tensor))
    return norm


def largest_unit_norm(tensor: Tensor) -> Tensor:
    """The largest Euclidean norm of a column, all dimensions but the last being rows."""
    columns = tensor.detach().reshape(-1, tensor.shape[-1])
    norms: Tensor = torch.linalg.vector_norm(columns, dim=0, dtype=_wide(tensor))
    return norms.max()


def norm_of_squares(tensor: Tensor) -> Tensor:
    """Frobenius norm of the squared entries, ‖a * a‖_F."""
    norm: Tensor = torch.linalg.vector_norm(tensor.detach(), ord=4, dtype=_wide(tensor))
    return norm**2


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _keep_largest(maxima: dict[torch.device, Tensor], norm: Tensor, device: torch.device) -> None:
    """Never waits for the device; NaN stays."""
    known = maxima.get(device)
    maxima[device] = norm if known is None else torch.maximum(known, norm)


def _largest(maxima: Mapping[torch.device, Tensor]) -> float:
    found = [float(each) for each in maxima.values()]
    return nan if any(each != each for each in found) else max(found, default=nan)
