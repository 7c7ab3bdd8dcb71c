"""The deep networks against what was published of them: parameters, shapes, first weights."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import nn

from experiments.deep.models.catalogue import NETWORKS
from experiments.deep.models.densenet import DenseLayer, densenet
from experiments.deep.models.network import kernels
from experiments.deep.models.resnet import HE_V2, Bottleneck, PlainBlock, resnet_v1, resnet_v2
from experiments.deep.models.vgg import vgg16


def trained(model):
    return sum(parameter.numel() for parameter in model.parameters())


def moving(model):
    """Keras counts the moving means and variances as parameters that are not trained."""
    return sum(buffer.numel() for name, buffer in model.named_buffers() if "running" in name)


def shapes(model, kinds):
    """Sizes of what the layers of some kinds give for one image, in order."""
    seen, handles = [], []
    for layer in model.modules():
        if isinstance(layer, kinds):
            handles.append(
                layer.register_forward_hook(lambda *given: seen.append(tuple(given[2].shape[1:])))
            )
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("build", "weights", "averages"),
    [
        # Keras' VGG16(include_top=False): 14 714 688. With the classifier of torchvision's vgg16
        # for ImageNet it would have the 138 357 544 that torchvision gives (below).
        (vgg16, 14_714_688 + 2 * (512 * 512 + 512) + 512 * 10 + 10, 0),
        # Keras' cifar10_resnet example, version 1, n = 3: "Total params: 274,442".
        (resnet_v1, 273_066, 274_442 - 273_066),
        # Huang et al. 2017, Table 2: 1.0M; 1 019 722 in the implementations with 16 channels first.
        (lambda: densenet(first=16), 1_019_722, 18_096),
    ],
)
def test_parameters_are_as_many_as_published(build, weights, averages):
    model = build()
    assert (trained(model), moving(model)) == (weights, averages)


def test_vgg_with_the_classifier_of_imagenet_would_be_torchvisions():
    convolutions = sum(trained(layer) for layer in vgg16().body if isinstance(layer, nn.Conv2d))
    linear = [(512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)]
    assert convolutions + sum((inputs + 1) * outputs for inputs, outputs in linear) == 138_357_544


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_residual_networks_v1_have_the_sizes_of_he_2016a_table_6(depth, millions):
    # Printed cut or rounded to two digits; projections and biases add 1 % to what He et al. have.
    assert trained(resnet_v1(depth)) / 1e6 == pytest.approx(millions, rel=0.025)


def test_residual_networks_v2_have_the_sizes_of_he_2016b():
    # 4.1: ResNet-164 has 1.7M parameters, as many as ResNet-110 of plain blocks.
    assert round(trained(resnet_v2(164, stages=HE_V2)) / 1e6, 1) == 1.7
    # Keras' example is wider. R. Atienza's ResNet56v2, the same network: 1.67M.
    model = resnet_v2(56)
    assert round((trained(model) + moving(model)) / 1e6, 2) == 1.67


@pytest.mark.parametrize(
    ("name", "depth", "shortcuts"),
    [("VGG16", 16, 0), ("ResNet20", 20, 2), ("ResNet56", 56, 3), ("ResNet164", 164, 3),
     ("DenseNet", 40, 0)],
)  # fmt: skip
def test_the_name_counts_the_layers_with_weights(name, depth, shortcuts):
    layers = [
        layer for layer in NETWORKS[name]().modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    assert len(layers) - shortcuts == depth


def test_vgg_is_column_d_without_a_pool_at_the_end():
    model = vgg16()
    assert shapes(model, nn.MaxPool2d) == [
        *[(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]
    ]
    assert shapes(model, nn.Conv2d) == [
        *[(64, 32, 32)] * 2,
        *[(128, 16, 16)] * 2,
        *[(256, 8, 8)] * 3,
        *[(512, 4, 4)] * 3,
        *[(512, 2, 2)] * 3,
    ]
    assert shapes(model, nn.Linear) == [(512,), (512,), (10,)]
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]
    assert not any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in model.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


@pytest.mark.parametrize(
    ("name", "kind", "blocks", "widths"),
    [
        ("ResNet20", PlainBlock, 3, (16, 32, 64)),
        ("ResNet56", Bottleneck, 6, (64, 128, 256)),
        ("ResNet164", Bottleneck, 18, (64, 128, 256)),
    ],
)
def test_residual_networks_have_three_stages(name, kind, blocks, widths):
    expected = [
        (width, side, side)
        for width, side in zip(widths, (32, 16, 8), strict=True)
        for _ in range(blocks)
    ]
    assert shapes(NETWORKS[name](), kind) == expected


def test_a_bottleneck_is_normalised_before_each_convolution_but_the_first_of_all():
    first, second = [block for block in resnet_v2(20).body if isinstance(block, Bottleneck)][:2]
    kinds = [type(layer).__name__ for layer in second.residual]
    unit = ["BatchNorm2d", "ReLU", "Conv2d"]
    assert kinds == unit * 3
    assert [type(layer).__name__ for layer in first.residual] == unit[2:] + unit * 2
    assert [layer.kernel_size[0] for layer in second.residual[2::3]] == [1, 3, 1]


def test_a_dense_layer_sees_all_maps_before_it():
    assert [shape[0] for shape in shapes(densenet(), DenseLayer)] == [
        *[24 + 12 * n for n in range(1, 13)],
        *[168 + 12 * n for n in range(1, 13)],
        *[312 + 12 * n for n in range(1, 13)],
    ]
    layer = DenseLayer(4, 3).eval()
    maps = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        found = layer(maps)
    assert torch.equal(found[:, :4], maps)
    assert found.shape == (2, 7, 5, 5)
    assert shapes(densenet(), nn.AvgPool2d) == [(168, 16, 16), (312, 8, 8)]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_ends_in_a_linear_layer_on_what_its_body_gives(name):
    model = NETWORKS[name](classes=100).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.body(images)
        assert features.shape == (2, model.head.in_features)
        torch.testing.assert_close(model(images), model.head(features))
    assert model.head.out_features == 100
    assert len(kernels(model)) == sum(isinstance(m, nn.Conv2d) for m in model.modules())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "VGG16"])
def test_weights_start_as_in_keras(name):
    torch.manual_seed(0)
    for layer in NETWORKS[name]().modules():
        if isinstance(layer, nn.Conv2d):
            deviation = sqrt(2 / layer.weight[0].numel())
            error = 6 * deviation / sqrt(2 * layer.weight.numel())
            assert float(layer.weight.detach().std()) == pytest.approx(deviation, abs=error)
            assert float(layer.weight.detach().abs().max()) <= 2.0 * deviation / 0.8796
            assert layer.bias is None or not layer.bias.any()
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.momentum, layer.eps) == (0.01, 1e-3)


def test_vggs_convolutions_start_as_torchvisions():
    torch.manual_seed(0)
    for layer in vgg16().body:
        if isinstance(layer, nn.Conv2d):
            deviation = sqrt(2 / (9 * layer.out_channels))
            error = 6 * deviation / sqrt(2 * layer.weight.numel())
            assert float(layer.weight.detach().std()) == pytest.approx(deviation, abs=error)
            assert not layer.bias.any()
