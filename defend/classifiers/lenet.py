"""LeNet: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86 (1998) 2278.

In the widespread form with ReLU, max pooling and dropout, in which many attacks on MNIST were first shown.
"""

from __future__ import annotations

from torch import nn

from defend.classifier import Classifier, ClassifierCard
from defend.training.recipes import fit_classifier

KERNEL = 5  # pixels, without padding


class LeNet(Classifier):
    """Channels w, 2w, each convolution followed by pooling; 5w hidden units. Dropout of channels before the second pooling, and of units."""

    card = ClassifierCard(paper="none: Proc. IEEE 86 (1998) 2278", licence="MIT")
    fit = fit_classifier
    width: int = 10  # channels of the first convolution
    dropout: float = 0.5

    def validate(self) -> None:
        self.require(self.size >= 16, "size", ">= 16: two convolutions without padding need room")
        self.require(1 <= self.width <= 1024, "width", "1 to 1024 channels")
        self.require(0 <= self.dropout < 1, "dropout", "0 <= dropout < 1")

    def build(self) -> nn.Module:
        w, side = self.width, pooled(pooled(self.size))
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


def pooled(side: int) -> int:
    """Pixels along a side after a convolution and its pooling."""
    return (side - KERNEL + 1) // 2
