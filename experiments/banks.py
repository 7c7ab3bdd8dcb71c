"""Banks: small networks of one shape, trained on the same batches side by side.

The networks of the papers' tables are so small that most of a step is overhead. A bank keeps R of
them in stacked tensors, reads each batch once, multiplies it with all first layers in one product,
and takes the gradients in closed form. Every run's weights are parameters of its own (views of the
stack), so that any torch optimizer and any controller can drive them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LOSSES = ("cross_entropy", "mse")


class Bank:
    """R networks of linear layers with ReLU between them.

    Args:
        models: R >= 1 networks of equal shape, each an ``nn.Linear`` or an ``nn.Sequential`` of
            ``nn.Linear`` with ``nn.ReLU`` between them; their weights are copied.
        loss: "cross_entropy" (targets: class indices, shape (rows,)) or "mse" (targets of shape
            (rows, outputs)); torch's, the mean over rows and outputs.

    Raises:
        TypeError: if a model has other layers.
        ValueError: if the shapes differ, or the loss is unknown.
    """

    def __init__(self, models: Sequence[nn.Module], *, loss: str) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {loss!r}")
        layers = [_linear_layers(model) for model in models]
        if len({tuple(layer.weight.shape for layer in each) for each in layers}) != 1:
            raise ValueError("models must be at least one, and of the same shape")
        self._loss = loss
        same = list(zip(*layers, strict=True))
        # One tensor a layer: weights of shape (R, out, in), biases of shape (R, out, 1).
        self._weights = [torch.stack([each.weight.detach() for each in row]) for row in same]
        self._biases = [
            torch.stack([each.bias.detach().unsqueeze(1) for each in row]) for row in same
        ]
        self._weight_grads = [torch.zeros_like(weight) for weight in self._weights]
        self._bias_grads = [torch.zeros_like(bias) for bias in self._biases]
        self._runs = [self._parameters_of(run) for run in range(len(models))]

    def __len__(self) -> int:
        """Number of runs, R."""
        return len(self._runs)

    def parameters(self, run: int) -> list[nn.Parameter]:
        """Weights and biases of one run, layer by layer; ``backward`` sets their gradients."""
        return self._runs[run]

    @property
    def stacks(self) -> list[Tensor]:
        """All runs' weights and biases, each of shape (R, ...)."""
        return [*self._weights, *self._biases]

    @torch.no_grad()
    def load(self, run: int, model: nn.Module) -> None:
        """Overwrite one run's weights with those of a model of the same shape.

        Raises:
            ValueError: if its shape is another; nothing is overwritten then.
        """
        sources = [t for layer in _linear_layers(model) for t in (layer.weight, layer.bias)]
        targets = self._runs[run]
        if [t.numel() for t in sources] != [t.numel() for t in targets] or any(
            layer.weight.shape != weight.shape[1:]
            for layer, weight in zip(_linear_layers(model), self._weights, strict=True)
        ):
            raise ValueError(f"model must have the shape of the bank's own, got {model}")
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source.reshape(target.shape))

    @torch.no_grad()
    def backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Losses of all runs on a batch, shape (R,); overwrites every parameter's gradient.

        Args:
            inputs: shape (rows, features).
            targets: as the loss wants them.
        """
        hidden, output = self._forward(inputs)
        losses, slope = self._loss_of(output, targets)
        below = (
            slope
            if not hidden
            else torch.stack(
                [self._through(run, hidden[run], slope[run]) for run in range(len(self))]
            )
        )
        torch.mm(below.flatten(0, 1), inputs, out=self._weight_grads[0].flatten(0, 1))
        torch.sum(below, dim=2, keepdim=True, out=self._bias_grads[0])
        return losses

    @torch.no_grad()
    def losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Losses of all runs, shape (R,), without gradients."""
        return self._loss_of(self._forward(inputs)[1], targets)[0]

    @torch.no_grad()
    def accuracy(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Share of rows whose largest output is their class, shape (R,)."""
        guessed = self._forward(inputs)[1].argmax(dim=1)
        return (guessed == targets).double().mean(dim=1)

    def _forward(self, inputs: Tensor) -> tuple[list[list[Tensor]], Tensor]:
        """Of each run: activations behind each ReLU, (units, rows); outputs, (R, units, rows)."""
        first = self._weights[0]
        output = torch.mm(first.flatten(0, 1), inputs.T).view(*first.shape[:2], len(inputs))
        output += self._biases[0]
        if len(self._weights) == 1:
            return [], output
        hidden, outputs = [], []
        for run, activation in enumerate(output):
            # Product by product: batched ones are slower at these shapes.
            kept = []
            for weight, bias in zip(self._weights[1:], self._biases[1:], strict=True):
                kept.append(activation.relu_())
                activation = torch.addmm(bias[run], weight[run], kept[-1])
            hidden.append(kept)
            outputs.append(activation)
        return hidden, torch.stack(outputs)

    def _through(self, run: int, hidden: list[Tensor], slope: Tensor) -> Tensor:
        """Back through one run's upper layers: sets their gradients, returns the first's slope."""
        for layer in range(len(self._weights) - 1, 0, -1):
            below = hidden[layer - 1]
            torch.mm(slope, below.T, out=self._weight_grads[layer][run])
            torch.sum(slope, dim=1, keepdim=True, out=self._bias_grads[layer][run])
            slope = torch.mm(self._weights[layer][run].T, slope)
            slope = torch.ops.aten.threshold_backward(slope, below, 0.0)
        return slope

    def _loss_of(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean losses, shape (R,), and their slopes in the output, which is overwritten."""
        rows = len(targets)
        if self._loss == "mse":
            error = output.sub_(targets.T)
            losses = error.square().mean(dim=(1, 2))
            return losses, error.mul_(2.0 / (rows * output.shape[1]))
        chosen = targets.expand(len(self), 1, -1)
        log_probability = torch.log_softmax(output, dim=1)
        losses = -log_probability.gather(1, chosen).mean(dim=(1, 2))
        slope = log_probability.exp_()
        slope.scatter_add_(1, chosen, slope.new_full((1,), -1.0).expand_as(chosen))
        return losses, slope.div_(rows)

    def _parameters_of(self, run: int) -> list[nn.Parameter]:
        parameters = []
        pairs = [(self._weights, self._weight_grads), (self._biases, self._bias_grads)]
        for layer in range(len(self._weights)):
            for values, grads in pairs:
                parameter = nn.Parameter(values[layer][run])
                parameter.grad = grads[layer][run]
                parameters.append(parameter)
        return parameters


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    modules: list[nn.Module] = [model] if isinstance(model, nn.Linear) else []
    if isinstance(model, nn.Sequential):
        modules = list(model.children())
    linear = [each for each in modules[0::2] if isinstance(each, nn.Linear)]
    between = [each for each in modules[1::2] if isinstance(each, nn.ReLU)]
    fits = len(linear) == len(between) + 1 and len(linear) + len(between) == len(modules)
    if not fits or any(each.bias is None for each in linear):
        raise TypeError(f"models must be nn.Linear layers with nn.ReLU between them, got {model}")
    return linear
