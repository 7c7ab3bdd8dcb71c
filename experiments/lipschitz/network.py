"""The CNN of [N] Table 1 and [L] Table 4, with the initial weights of the authors' notebook."""

from __future__ import annotations

from torch import nn

from experiments.keras import NORM_EPS, NORM_MOMENTUM, he_normal


def mnist_cnn() -> nn.Sequential:
    """730 346 parameters; (rows, 1, 28, 28) -> logits (rows, 10).

    The text says ReLU for all layers but the last. Convolutions start He-normal (cut at two
    deviations, as Keras does), dense layers Glorot-uniform and biases at zero, as in the authors'
    notebook (github.com/yrahul3910/adaptive-lr-dnn, MNIST/MNIST.ipynb); the papers do not say.
    torch's global generator draws them.
    """
    layers = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        nn.Conv2d(32, 64, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Conv2d(64, 128, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(128 * 6 * 6, 128),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(128, eps=NORM_EPS, momentum=NORM_MOMENTUM),
        nn.Dropout(0.25),
        nn.Linear(128, 10),
    )
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            _start(layer)
    return layers


def _start(layer: nn.Conv2d | nn.Linear) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
    else:
        he_normal(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
