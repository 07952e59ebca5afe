"""LeNet: LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86 (1998) 2278.

The paper is "Gradient-based learning applied to document recognition". This is the widespread form
with ReLU, max pooling and dropout, on which many attacks on MNIST were first shown.
"""

from __future__ import annotations

from torch import nn

from defend.classifier import Classifier, ClassifierCard
from defend.training.recipes import ClassifierRecipe

KERNEL = 5  # side of the convolutions in pixels; there is no padding


class LeNet(Classifier):
    """Classify by two convolutions of w and 2w channels and 5w hidden units, with w = ``width``.

    Pooling follows each convolution. Dropout acts on channels before the second pooling, and on the
    hidden units.
    """

    card = ClassifierCard(paper="none: Proc. IEEE 86 (1998) 2278", licence="MIT")
    recipe = ClassifierRecipe
    width: int = 10  # channels of the first convolution
    dropout: float = 0.5  # probability that a channel or a unit is dropped

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        self.require(self.size >= 16, "size", ">= 16: two convolutions without padding need room")
        self.require(1 <= self.width <= 1024, "width", "1 to 1024 channels")
        self.require(0 <= self.dropout < 1, "dropout", "0 <= dropout < 1")

    def build(self) -> nn.Module:
        """Return the untrained network."""
        w = self.width
        side = pooled_side(pooled_side(self.size))
        return nn.Sequential(
            nn.Conv2d(self.channels, w, KERNEL),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(w, 2 * w, KERNEL),
            nn.Dropout2d(self.dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * w * side**2, 5 * w),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(5 * w, self.classes),
        )


def pooled_side(side: int) -> int:
    """Return the pixels along a side after a convolution and its pooling."""
    return (side - KERNEL + 1) // 2
