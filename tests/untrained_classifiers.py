"""Untrained classifiers of several shapes, for tests that hold for all of them."""

from defend.classifiers.convnet import ConvNet
from defend.classifiers.resnet20 import ResNet20
from defend.classifiers.torchvision import TorchvisionModel
from defend.classifiers.wrn16_4 import WideResNet

# A class with the fields of an instance.
SHAPES = [
    (ConvNet, {"channels": 1, "size": 8}),
    (ConvNet, {"channels": 1, "size": 28, "width": 8}),
    (ConvNet, {"channels": 3, "size": 33, "classes": 4}),
    (ResNet20, {}),
    (ResNet20, {"channels": 1, "size": 28}),
    (WideResNet, {"classes": 7}),
    (TorchvisionModel, {"model": "squeezenet1_1", "size": 64, "classes": 5}),
]
IDS = [f"{cls.__name__}-{i}" for i, (cls, _) in enumerate(SHAPES)]


def untrained(cls, **fields):
    """Return an instance with random weights."""
    return cls(weights="untrained", **fields)
