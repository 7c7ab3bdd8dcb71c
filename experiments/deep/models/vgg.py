"""VGG-16 for images of 32 x 32 pixels, as [E] IV.C modifies it."""

from __future__ import annotations

from typing import Final

from torch import nn

from experiments.deep.models.network import Network

# Simonyan & Zisserman 2015 (arXiv 1409.1556), Table 1, column D; 0 halves the size.
CONFIGURATION_D: Final = (
    *(64, 64, 0, 128, 128, 0, 256, 256, 256, 0),
    *(512, 512, 512, 0, 512, 512, 512, 0),
)
WIDTH: Final = 512  # of the reduced classifier's two hidden layers
DROPOUT: Final = 0.5


def vgg16(classes: int = 10) -> Network:
    """15 245 130 parameters for 10 classes; no batch normalisation, no average pool.

    [E] says "a modified classifier block to accommodate the reduced input size" and "see code",
    which was not published. What remains of a 32 x 32 image after five halvings is 1 x 1 x 512, so
    the classifier here is 512-512-512-classes in torchvision's order (linear, ReLU, dropout 0.5),
    the usual reduction. Initial weights are those that one gets who puts a new classifier on
    torchvision's network: its convolutions' (normal with variance 2 / fan-out, biases zero), and
    torch's own for the linear layers. torch's global generator draws them.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in CONFIGURATION_D:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, width, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.ReLU(inplace=True)]
        channels = width
    layers.append(nn.Flatten())
    for _ in range(2):
        layers += [nn.Linear(channels, WIDTH), nn.ReLU(inplace=True), nn.Dropout(DROPOUT)]
        channels = WIDTH
    return Network(nn.Sequential(*layers), nn.Linear(channels, classes))
