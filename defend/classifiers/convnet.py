"""A small convolutional network for small images.

It has five 3x3 convolutions, arranged as in VGG (arXiv:1409.1556), at a hundredth of its size.
"""

from __future__ import annotations

from torch import nn

from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.training.recipes import ClassifierRecipe


class ConvNet(Classifier):
    """Classify by convolutions of w, w, 2w, 2w and 4w channels, with w = ``width``.

    The second and the fourth convolution have stride 2, so that they halve the image. A global
    average and one linear layer follow.
    """

    card = ClassifierCard(paper="none: an ordinary small network", licence="MIT")
    recipe = ClassifierRecipe
    width: int = 32  # channels of the first convolution

    def validate(self) -> None:
        """Raise BadParameter if ``width`` is outside its range."""
        self.require(1 <= self.width <= 1024, "width", "1 to 1024 channels")

    def build(self) -> nn.Module:
        """Return the untrained network: images (b, c, h, w) to logits (b, classes)."""
        c, w = self.channels, self.width
        return nn.Sequential(
            Normalise((0.5,) * c, (0.25,) * c),
            *conv_layer(c, w),
            *conv_layer(w, w, stride=2),
            *conv_layer(w, 2 * w),
            *conv_layer(2 * w, 2 * w, stride=2),
            *conv_layer(2 * w, 4 * w),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * w, self.classes),
        )


def conv_layer(c_in: int, c_out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """Return the modules of one layer: a 3x3 convolution with its batch norm and ReLU.

    They map (b, c_in, h, w) to (b, c_out, ceil(h / stride), ceil(w / stride)).
    """
    return (
        nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )
