"""Small networks of the kinds that users train, sized for a panel that runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrsearch import TaskData

SIDE = 8  # of a digit's image


def small_cnn(data: TaskData) -> nn.Sequential:
    """Two convolutions with stride 2 over an image of 8 x 8, and a linear layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4, data.outputs),
    )


def batch_norm_mlp(data: TaskData) -> nn.Sequential:
    """Two hidden layers, each normalised over the batch."""
    features = data.train.inputs[0].numel()
    return nn.Sequential(
        nn.Linear(features, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, data.outputs),
    )


def small_transformer(data: TaskData) -> nn.Module:
    """One block of attention over the eight rows of a digit."""
    return RowTransformer(data.outputs)


class RowTransformer(nn.Module):
    """A pre-norm transformer block over the rows of an image, then the mean over its rows.

    Args:
        outputs: number of outputs.
        width: of a row's embedding.
        heads: of the attention.
    """

    def __init__(self, outputs: int, *, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(SIDE, width)
        self.place = nn.Parameter(0.02 * torch.randn(SIDE, width))
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.last_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of shape (rows, outputs) for flat images of shape (rows, 64)."""
        x = self.embed(inputs.reshape(-1, SIDE, SIDE)) + self.place
        x = x + self._attention(self.first_norm(x))
        x = x + self.down(torch.relu(self.up(self.second_norm(x))))
        out: Tensor = self.head(self.last_norm(x).mean(dim=1))
        return out

    def _attention(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        split = self.attend(x).reshape(rows, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(dim=-1)
        mixed: Tensor = self.project((weights @ value).transpose(1, 2).reshape(rows, length, width))
        return mixed
