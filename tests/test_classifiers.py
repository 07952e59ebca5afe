"""Classifiers against the figures of their papers."""

import pytest
import torch
from torch import nn
from untrained_classifiers import IDS, SHAPES, untrained

from defend.classifiers.convnet import ConvNet
from defend.classifiers.lenet import LeNet
from defend.classifiers.resnet20 import BasicBlock, ResNet20
from defend.classifiers.wrn16_4 import WideResNet
from defend.errors import BadParameter
from defend.loading import load


@pytest.mark.parametrize(("cls", "fields"), SHAPES, ids=IDS)
def test_the_output_is_logits_of_the_declared_shape(cls, fields):
    classifier = untrained(cls, **fields)
    x = classifier.example(3)
    assert x.shape == (3, classifier.channels, classifier.size, classifier.size)
    logits = classifier.network(x)
    assert logits.shape == (3, classifier.classes)
    assert logits.dtype == torch.float32
    assert not torch.allclose(logits.sum(1), torch.ones(3)), "the output is probabilities"


@pytest.mark.parametrize(("cls", "fields"), SHAPES, ids=IDS)
def test_pixels_are_normalised_inside_the_network(cls, fields):
    """The first layer with weights gets values around zero for images in [0, 1]."""
    classifier = untrained(cls, **fields)
    inputs = []
    first = next(m for m in classifier.net.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    image = classifier.example(1)[0]
    classifier.network(torch.stack([torch.zeros_like(image), torch.ones_like(image)]))
    black, white = inputs[0]
    assert float(black.amax()) < -1.5
    assert float(white.amin()) > 1.5


# The papers say 0.27 M for ResNet-20 (arXiv:1512.03385, table 6) and 2.7 M for WRN-16-4
# (arXiv:1605.07146, table 4).
PARAMETERS = [(ResNet20, 269_722), (WideResNet, 2_748_890), (ConvNet, 141_034)]


@pytest.mark.parametrize(("cls", "count"), PARAMETERS)
def test_the_number_of_parameters_is_that_of_the_paper(cls, count):
    assert sum(p.numel() for p in untrained(cls).net.parameters()) == count


@pytest.mark.parametrize(
    ("cls", "layer_types", "layers"),
    [(ResNet20, nn.Conv2d | nn.Linear, 20), (WideResNet, nn.Conv2d, 16)],
)
def test_the_depth_is_the_number_in_the_name(cls, layer_types, layers):
    """Count as the papers do.

    ResNet-20 has 6n + 2 layers with the linear one; WRN-16-4 has 6N + 4 convolutions, 1x1 shortcuts
    among them.
    """
    assert sum(isinstance(m, layer_types) for m in untrained(cls).net.modules()) == layers


def test_the_shortcut_of_option_a_strides_the_image_and_adds_zero_channels():
    x = torch.rand(2, 4, 6, 6)
    y = BasicBlock(4, 8, stride=2).shortcut(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_the_resolution_of_resnet20_halves_twice():
    shapes = []
    classifier = untrained(ResNet20)
    for module in classifier.net.modules():
        if isinstance(module, BasicBlock):
            module.register_forward_hook(lambda *arguments: shapes.append(arguments[2].shape[1:]))
    classifier.network(classifier.example(1))
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


@pytest.mark.parametrize("name", ["convnet", "resnet20", "wrn16-4"])
def test_an_untrained_network_takes_the_shape_of_the_data(name):
    data = load("digits", "dataset")
    classifier = load(f"{name}:weights=untrained", "classifier", data)
    assert (classifier.channels, classifier.size, classifier.classes) == (1, 8, 10)
    classifier.check_fits(1, 8, 10, "digits")


@pytest.mark.parametrize(("size", "inputs"), [(28, 320), (32, 500), (16, 20)])
def test_lenet_has_the_shapes_of_its_description(size, inputs):
    """28 -> 24 -> 12 -> 8 -> 4 pixels a side: 20 x 4 x 4 = 320 numbers before the hidden layer."""
    net = untrained(LeNet, channels=1, size=size).net
    hidden = net[8]
    assert hidden.in_features == inputs
    assert hidden.out_features == 50


def test_lenet_refuses_images_that_are_too_small():
    with pytest.raises(BadParameter, match="size=15"):
        untrained(LeNet, channels=1, size=15)


def test_equal_specs_build_equal_networks():
    first, second = (untrained(ResNet20).net.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_width_is_checked():
    with pytest.raises(BadParameter, match="width=0"):
        untrained(ConvNet, width=0)
