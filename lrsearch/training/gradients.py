"""Sums over a window's first gradients, on their device, for the window correction (Eq. 53)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from lrsearch.stats.window import window_correction

_SUM = torch.float32  # sums of half-precision gradients need more digits than these have
_MANY = 32  # steps whose norms are added up together


class GradientSums:
    """Sum of the gradients' norms, and norm of their sum.

    Costs one buffer as large as the gradients, so it is dropped once the correction is known.

    Args:
        parameters: the optimized parameters; their ``.grad`` is read after each optimizer step.
        skip_nonfinite: leave out steps with an infinite or NaN gradient, as a GradScaler does.
    """

    def __init__(self, parameters: Sequence[Tensor], *, skip_nonfinite: bool = False) -> None:
        self._parameters = parameters
        self._skip_nonfinite = skip_nonfinite
        self._vector: dict[int, Tensor] = {}
        self._path: Tensor | None = None
        self._summed: list[int] = []
        self._sums: list[Tensor] = []  # those of the vector that belong to these indices
        # Norms of single gradients, a row a step: few calls add up many steps at once. Rows have
        # their place beforehand: small tensors that live on scatter what the training allocates.
        self._norms: Tensor | None = None
        self._rows: Sequence[Tensor] = ()
        self._waiting = 0
        self._no_grad = torch.no_grad()
        kinds = {(p.device, p.dtype) for p in parameters}
        self._one_device = len(kinds) == 1

    def add(self) -> None:
        """Add the present gradients. Never waits for the device."""
        indices, grads = [], []
        for index, parameter in enumerate(self._parameters):
            grad = parameter.grad
            if grad is not None:
                indices.append(index)
                grads.append(grad.to_dense() if grad.is_sparse else grad)
        if not grads:
            return
        with self._no_grad:
            if indices != self._summed:
                self._settle()
                self._make_room(indices, grads)
            if self._one_device and not self._skip_nonfinite:
                torch.stack(torch._foreach_norm(grads), out=self._rows[self._waiting])
                self._waiting += 1
                if self._waiting == _MANY:
                    self._settle()
            else:
                grads = self._add_norm(grads)
            torch._foreach_add_(self._sums, grads)

    def _make_room(self, indices: list[int], grads: list[Tensor]) -> None:
        """Room for gradients that were not there before."""
        for index, grad in zip(indices, grads, strict=True):
            if index not in self._vector:
                self._vector[index] = torch.zeros_like(grad, dtype=_SUM)
        self._summed = indices
        self._sums = [self._vector[index] for index in indices]
        self._norms = torch.empty(_MANY, len(indices), dtype=_SUM, device=grads[0].device)
        self._rows = self._norms.unbind()

    def _add_norm(self, grads: list[Tensor]) -> list[Tensor]:
        """Lengthen the path by one step; returns the gradients as they are to be summed."""
        norm = self._norm(grads)
        if self._skip_nonfinite:
            usable = torch.isfinite(norm)
            norm = torch.where(usable, norm, 0.0)
            grads = [torch.where(usable.to(g.device), g, 0.0) for g in grads]
        self._lengthen([norm])
        return grads

    def _settle(self) -> None:
        """Lengthen the path by the steps whose norms wait."""
        if self._norms is not None and self._waiting:
            norms, self._waiting = self._norms[: self._waiting], 0
            self._lengthen(torch.linalg.vector_norm(norms, dim=1).unbind())

    def _lengthen(self, norms: Iterable[Tensor]) -> None:
        for norm in norms:
            if self._path is None:
                self._path = torch.zeros_like(norm)
            self._path += norm

    def _norm(self, grads: list[Tensor]) -> Tensor:
        if self._one_device:  # half the calls of the general way
            norms = torch.stack(torch._foreach_norm(grads)).to(_SUM)
            total: Tensor = torch.linalg.vector_norm(norms)
            return total
        return get_total_norm(grads).to(_SUM)

    def correction(self) -> float:
        """c_w of Eq. 53; 1 if there were no gradients. Waits for the device once."""
        self._settle()
        if self._path is None:
            return 1.0
        displacement = self._norm(list(self._vector.values()))
        path, size = torch.stack([self._path, displacement.to(self._path.device)]).tolist()
        return window_correction(path, size)

    def state_dict(self) -> dict[str, object]:
        """Copies of the sums."""
        self._settle()
        path = None if self._path is None else self._path.clone()
        return {"path": path, "vector": {i: s.clone() for i, s in self._vector.items()}}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take over sums, onto the parameters' devices."""
        path, vector = state["path"], state["vector"]
        assert path is None or isinstance(path, Tensor)
        assert isinstance(vector, dict)
        self._vector = {
            int(i): s.detach().clone().to(self._parameters[int(i)].device)
            for i, s in vector.items()
        }
        self._path = None if path is None else path.clone().to(self._parameters[0].device)
        self._summed, self._sums = [], []
        self._waiting = 0
