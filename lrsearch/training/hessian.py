"""Sharpness: the largest eigenvalue of the loss Hessian, from Hessian-vector products alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrsearch.bounds.blocks import Matrix
from lrsearch.bounds.krylov import MAX_BASIS, RitzPair, VectorSpace, largest_eigenvalue
from lrsearch.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    require_at_least,
    require_positive,
    require_whole,
)
from lrsearch.training.loop import LossFunction
from lrsearch.training.snapshot import random_state, set_random_state

BASIS_NUMBERS = 2**27
"""Numbers that the search may keep for its basis: 0.5 GB in float32. Wide models restart sooner."""

_LEAST_BASIS = 4


@dataclass(frozen=True, slots=True)
class Sharpness:
    """The largest eigenvalue of a loss Hessian.

    Attributes:
        value: the sharpness, in loss / weight^2 (times weight per preconditioner's unit if there is
            one); not positive where the loss curves upwards in no direction.
        residual: ``||H v - value v||`` of the unit eigenvector v: an eigenvalue lies within it.
        products: Hessian-vector products spent, each one pass over the batches.
        samples: rows in a pass.
    """

    value: float
    residual: float
    products: int
    samples: int


class LossHessian:
    """The Hessian H of the mean loss over some batches, known by its products with vectors.

    The model stays in the mode that it is in: in training mode batch-norm uses each batch's own
    statistics, as training does. Random layers draw the same numbers in every pass. Gradients,
    buffers, random generators and the model are left as they were. Nothing waits for the device
    within a pass.

    Args:
        model: called with the inputs of a batch.
        loss_function: (outputs, targets) -> the mean loss over the batch's rows, a scalar that can
            be differentiated twice.
        batches: of (inputs, targets), walked once per product; a one-shot iterator is kept.
        parameters: that H is taken with respect to; those that the loss does not use have rows of
            zeros.
        seed: of the random layers.

    Attributes:
        gradients: of the mean loss, one per parameter, in the precision of ``dtype``; None where
            the loss does not use the parameter.
        samples: rows in a pass.
        device, dtype: where the long vectors live; at least float32.

    Raises:
        ValueError: if there are no batches, the loss is no finite scalar, or uses no parameter.
        TypeError: if an argument or a batch is of the wrong kind.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_function: LossFunction,
        batches: Iterable[Any],
        parameters: Sequence[Tensor],
        *,
        seed: int = 0,
    ) -> None:
        _check_kinds(model, loss_function, batches)
        if not parameters:
            raise InvalidArgumentError(
                "model must have trainable parameters, got none; set requires_grad on some"
            )
        self._model, self._loss_function = model, loss_function
        self._batches = list(batches) if isinstance(batches, Iterator) else batches
        self._parameters = list(parameters)
        self._seed = require_whole("seed", seed)
        self.device = parameters[0].device
        self.dtype = torch.promote_types(
            torch.float32, max((p.dtype for p in parameters), key=lambda kind: kind.itemsize)
        )
        self.samples = 0
        self._walked = 0  # batches in a pass
        self._held: list[tuple[tuple[Tensor | None, ...], int]] | None = None
        with _undisturbed(model):
            self.gradients = self._mean_gradients()

    def largest(
        self,
        *,
        scale: Tensor | None,
        shift: Tensor | None,
        tolerance: float,
        max_products: int,
        seed: int,
    ) -> RitzPair:
        """The largest eigenvalue of S H S + T, with S = diag(scale) and T = diag(shift).

        Args:
            scale: flat, shape (parameters,); None for ones.
            shift: the same; None for zeros.
            tolerance: stop when residual <= tolerance * |value|.
            max_products: most products.
            seed: of the random start.
        """

        def multiply(vectors: Tensor) -> Tensor:
            vector = vectors[:, 0]
            image = self._times(vector if scale is None else scale * vector)
            if scale is not None:
                image = scale * image
            if shift is not None:
                image = image + shift * vector
            return image[:, None]

        size = sum(p.numel() for p in self._parameters)
        # What the parameters' own precision leaves of a product.
        coarsest = max(torch.finfo(p.dtype).eps for p in self._parameters)
        with _undisturbed(self._model):
            # One graph is in memory anyway; where there is but one, every product may use it.
            self._held = list(self._slopes()) if self._walked == 1 else None
            try:
                return largest_eigenvalue(
                    multiply,
                    size,
                    tolerance=tolerance,
                    block_size=1,
                    max_basis=max(_LEAST_BASIS, min(MAX_BASIS, BASIS_NUMBERS // (2 * size))),
                    max_passes=max_products,
                    seed=seed,
                    noise=4 * coarsest,
                    space=_space(self.device, self.dtype),
                )
            finally:
                self._held = None

    def flat(self, pieces: Sequence[Tensor | None]) -> Tensor:
        """Tensors shaped as the parameters as one vector; zeros for None."""
        return torch.cat(
            [
                torch.zeros(p.numel(), device=self.device, dtype=self.dtype)
                if piece is None
                else piece.detach().reshape(-1).to(self.device, self.dtype)
                for piece, p in zip(pieces, self._parameters, strict=True)
            ]
        )

    def _times(self, vector: Tensor) -> Tensor:
        """H v for a flat v of shape (parameters,), on ``device`` in ``dtype``; one pass.

        Differentiates the gradient's product with v (Pearlmutter, Neural Computation 6, 1994).

        Raises:
            ValueError: if the batches give another number of rows than at first.
        """
        pieces = vector.split_with_sizes([p.numel() for p in self._parameters])
        shaped = [
            piece.reshape(p.shape).to(p) for piece, p in zip(pieces, self._parameters, strict=True)
        ]
        total, rows = torch.zeros_like(vector), 0
        for gradients, count in self._held or self._slopes():
            rows += count
            # A loss that is linear in a parameter has a gradient that is no function of any.
            curved = [
                (g, v)
                for g, v in zip(gradients, shaped, strict=True)
                if g is not None and g.requires_grad
            ]
            if curved:
                outputs, directions = zip(*curved, strict=True)
                products = torch.autograd.grad(
                    outputs,
                    self._parameters,
                    directions,
                    retain_graph=self._held is not None,
                    allow_unused=True,
                )
                total += self.flat(products) * (count / self.samples)
        if rows != self.samples:
            raise InvalidArgumentError(
                f"batches must give the same samples at every pass, got {self.samples} rows and "
                f"then {rows}; pass a list, or a loader without random parts"
            )
        return total

    def _mean_gradients(self) -> list[Tensor | None]:
        sums: list[Tensor | None] = [None] * len(self._parameters)
        mean = torch.zeros((), device=self.device, dtype=self.dtype)
        for loss, count in self._losses():
            self.samples += count
            self._walked += 1
            mean += loss.detach().to(mean) * count
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    weighted = gradient.detach().to(self.dtype) * count
                    before = sums[index]
                    sums[index] = weighted if before is None else before + weighted
        if self.samples == 0:
            raise InvalidArgumentError("batches must hold samples, got none")
        if all(each is None for each in sums):
            raise InvalidArgumentError(
                "loss_function must depend on the trainable parameters, got a loss that uses none"
            )
        if not bool(torch.isfinite(mean)):
            raise InvalidArgumentError(
                f"loss_function must be finite at these weights, got {float(mean)}; "
                f"start from weights that have not diverged"
            )
        return [None if each is None else each / self.samples for each in sums]

    def _slopes(self) -> Iterator[tuple[tuple[Tensor | None, ...], int]]:
        """The gradients of each batch's loss, to be differentiated again, and its rows."""
        for loss, count in self._losses():
            yield (
                torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True),
                count,
            )

    def _losses(self) -> Iterator[tuple[Tensor, int]]:
        """The loss of each batch, and its rows."""
        # Not torch.manual_seed: it would seed a device that is not in use yet, for good.
        torch.default_generator.manual_seed(self._seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(self._seed)
        for batch in self._batches:
            inputs, targets = _pair(batch)
            # Copies take the updates of running statistics; fresh ones, so that passes are equal.
            buffers = {name: b.detach().clone() for name, b in self._model.named_buffers()}
            outputs = functional_call(self._model, buffers, (inputs.to(self.device),))
            loss = self._loss_function(outputs, targets.to(self.device))
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise InvalidArgumentError(
                    f"loss_function must return a scalar tensor, the mean over rows, got {shape}"
                )
            if not loss.requires_grad:
                raise InvalidArgumentError(
                    "loss_function must depend on the trainable parameters, got a loss without "
                    "gradient; do not detach it"
                )
            yield loss, len(inputs)


def sharpness(
    model: nn.Module,
    loss_function: LossFunction,
    batches: Iterable[Any],
    *,
    preconditioner: Sequence[Tensor] | None = None,
    tolerance: float = 1e-3,
    max_products: int = 200,
    seed: int = 0,
) -> Sharpness:
    """How sharply does the loss curve here: the largest eigenvalue of its Hessian?

    H is the Hessian of the mean loss over all rows of the batches, with respect to the trainable
    parameters; with a preconditioner D, diagonal and positive, it is D^-1/2 H D^-1/2, which has the
    eigenvalues of D^-1 H (Cohen et al. 2022, arXiv 2207.14484). Found by Lanczos iteration, one
    Hessian-vector product at a time; batches are weighted by their rows, so uneven ones do not
    matter. Gradient descent on a quadratic of that curvature is stable below the rate
    2 / sharpness; for other optimizers see ``sharpness_bound``.

    Args:
        model: in the mode that is wanted: training mode uses batch-norm's batch statistics and one
            fixed draw of dropout's masks, eval mode neither. Parameters with ``requires_grad``
            count, and no others. Gradients, buffers, random generators and the model stay as they
            are.
        loss_function: (outputs, targets) -> the mean loss over the batch's rows, a scalar.
        batches: of (inputs, targets) tensors, inputs of shape (rows, ...), walked once per product
            with the same rows each time: a list, or a ``DataLoader`` without random parts. A
            one-shot iterator is kept in memory.
        preconditioner: D, one positive tensor per trainable parameter in the order of
            ``model.parameters()``, shaped like it; None for ones.
        tolerance: stop when the residual is below this times the value; the value itself is far
            closer, by residual^2 / gap. Parameters in float32 leave residuals near 1e-6 of the
            largest eigenvalue in magnitude.
        max_products: most Hessian-vector products. Running out of them shows in ``residual``.
        seed: of the random start, and of the draws of random layers.

    Returns:
        Value, residual, products and samples. Piecewise linear activations have the curvature that
        holds almost everywhere.

    Raises:
        ValueError: if there are no trainable parameters or no rows, the loss is no finite scalar,
            the rows change between passes, or an option is out of range.
        TypeError: if an argument or a batch is of the wrong kind.

    Memory: the graph of one batch, and a basis of at most 64 vectors or ``BASIS_NUMBERS`` numbers.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batch = (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1))
        >>> round(sharpness(model, nn.functional.mse_loss, [batch]).value, 4)  # 2 x^T x / 2
        4.0
    """
    require_positive("tolerance", tolerance)
    require_at_least("max_products", max_products, 1)
    _check_kinds(model, loss_function, batches)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if preconditioner is not None:
        _check_preconditioner(preconditioner, parameters)
    hessian = LossHessian(model, loss_function, batches, parameters, seed=seed)
    scale = None if preconditioner is None else hessian.flat(preconditioner).rsqrt()
    pair = hessian.largest(
        scale=scale, shift=None, tolerance=tolerance, max_products=max_products, seed=seed
    )
    return Sharpness(pair.value, pair.residual, pair.passes, hessian.samples)


def _check_kinds(model: object, loss_function: object, batches: object) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(loss_function):
        raise InvalidTypeError(
            f"loss_function must be callable with (outputs, targets), got {loss_function!r}"
        )
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise InvalidTypeError(
            f"batches must be an iterable of (inputs, targets), got {type(batches).__name__}; "
            f"wrap one batch in a list"
        )


def _check_preconditioner(preconditioner: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    shapes = [tuple(p.shape) for p in parameters]
    given = [tuple(getattr(d, "shape", ())) for d in preconditioner]
    if given != shapes:
        raise InvalidArgumentError(
            f"preconditioner must have the shapes of the trainable parameters, {shapes}, "
            f"got {given}"
        )
    if not all(bool(((d > 0) & torch.isfinite(d)).all()) for d in preconditioner):
        raise InvalidArgumentError(
            "preconditioner must be positive and finite, got an entry that is not; add an epsilon"
        )


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, targets = batch
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and inputs.dim() > 0:
            return inputs, targets
    raise InvalidTypeError(
        f"batches must give pairs of tensors (inputs, targets), got {type(batch).__name__}; "
        f"wrap one batch in a list"
    )


def _space(device: torch.device, dtype: torch.dtype) -> VectorSpace:
    """Long vectors on the device; small matrices cross over."""

    def empty(rows: int, columns: int) -> Tensor:
        return torch.empty(columns, rows, device=device, dtype=dtype).T

    def lift(matrix: Matrix) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(matrix)).to(dtype).to(device)

    def fetch(tensor: Tensor) -> Matrix:
        matrix: Matrix = tensor.cpu().double().numpy()
        return matrix

    return VectorSpace(empty, lift, fetch, rounding=torch.finfo(dtype).eps)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Twice differentiable kernels inside; the random generators as they were after it."""
    state = random_state()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))  # gradients are on inside
            # Fused attention and cuDNN's recurrent layers have no second derivative.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        set_random_state(state)
