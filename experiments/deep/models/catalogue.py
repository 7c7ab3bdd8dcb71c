"""The networks by the names that the papers' tables have for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from experiments.deep.models.densenet import densenet
from experiments.deep.models.network import Network
from experiments.deep.models.resnet import resnet_v1, resnet_v2
from experiments.deep.models.vgg import vgg16

# Each takes ``classes``.
NETWORKS: Final[Mapping[str, Callable[..., Network]]] = {
    "VGG16": vgg16,
    "ResNet20": partial(resnet_v1, 20),
    "ResNet56": partial(resnet_v2, 56),
    "ResNet164": partial(resnet_v2, 164),
    "DenseNet": partial(densenet, 40),
}
