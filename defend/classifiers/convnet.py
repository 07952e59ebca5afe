"""A small convolutional network for small images: five 3x3 convolutions, the arrangement of VGG (arXiv:1409.1556) at a hundredth of its size."""

from __future__ import annotations

from torch import nn

from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.training.recipes import fit_classifier


class ConvNet(Classifier):
    """Channels w, w, 2w, 2w, 4w; the second and the fourth convolution halve the image; global average; one linear layer."""

    card = ClassifierCard(paper="none: an ordinary small network", licence="MIT")
    fit = fit_classifier
    width: int = 32  # channels of the first convolution

    def validate(self) -> None:
        self.require(1 <= self.width <= 1024, "width", "1 to 1024 channels")

    def build(self) -> nn.Module:
        c, w = self.channels, self.width
        return nn.Sequential(
            Normalise((0.5,) * c, (0.25,) * c),
            *layer(c, w),
            *layer(w, w, stride=2),
            *layer(w, 2 * w),
            *layer(2 * w, 2 * w, stride=2),
            *layer(2 * w, 4 * w),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * w, self.classes),
        )


def layer(c_in: int, c_out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )
