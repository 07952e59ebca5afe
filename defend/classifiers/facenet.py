"""FaceNet: Schroff, Kalenichenko, Philbin, arXiv:1503.03832, with the network Inception-ResNet-v1.

The network is that of Szegedy, Ioffe, Vanhoucke, Alemi, arXiv:1602.07261, figures 10 to 14.

The papers are "FaceNet: a unified embedding for face recognition and clustering" and "Inception-v4,
Inception-ResNet and the impact of residual connections on learning". Numbers of channels, scales
of residuals and the output layers are those of the networks that are in use under this name, of
davidsandberg/facenet and timesler/facenet-pytorch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.classifier import ClassifierCard, Normalise
from defend.embedding import EmbeddingClassifier
from defend.training.margin import MarginRecipe

SMALLEST = 75  # pixels: below it nothing is left before the last pooling
STD = 128 / 255  # pixels of 0..255 are normalised by (x - 127.5) / 128
NORM_EPS = 1e-3  # of batch norms
FEATURES = 1792  # channels before the embedding


class FaceNet(EmbeddingClassifier):
    """Embed faces by Inception-ResNet-v1: 23,482,624 parameters for 3 channels and 512 numbers.

    Here it is trained by a margin loss, as `face-resnet`, instead of the triplets of the paper.
    """

    card = ClassifierCard(paper="arXiv:1503.03832, arXiv:1602.07261", licence="MIT")
    recipe = MarginRecipe
    uses = frozenset({"scale", "dropout"})
    size: int = 160
    classes: int = 158
    embedding: int = 512
    dropout: float = 0.6  # before the linear layer, in training only

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        super().validate()
        self.require(self.size >= SMALLEST, "size", f">= {SMALLEST}")
        self.require(0 <= self.dropout < 1, "dropout", "0 <= dropout < 1")

    def build_embedder(self) -> nn.Module:
        """Return the untrained network from images to embeddings."""
        return nn.Sequential(
            Normalise((0.5,) * self.channels, (STD,) * self.channels),
            *build_stem(self.channels),
            *(build_block35() for _ in range(5)),
            build_mixed_6a(),
            *(build_block17() for _ in range(10)),
            build_mixed_7a(),
            *(build_block8(0.2) for _ in range(5)),
            build_block8(1.0, activate=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(self.dropout),
            nn.Linear(FEATURES, self.embedding, bias=False),
            nn.BatchNorm1d(self.embedding, eps=NORM_EPS),
        )


class Conv(nn.Sequential):
    """Compute relu(bn(conv(x))), without a bias."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(c_out, eps=NORM_EPS),
            nn.ReLU(),
        )


class Branches(nn.Module):
    """Compute the channels of several branches of one input, one after another."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor (b, sum of the branches' channels, h', w')."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class ScaledResidual(nn.Module):
    """Compute relu(x + scale * project(branches(x))): section 3.3 of arXiv:1602.07261.

    The last one of the network has no relu.
    """

    def __init__(self, branches: Branches, c_mixed: int, c: int, scale: float, activate: bool):
        super().__init__()
        self.branches = branches
        self.project = nn.Conv2d(c_mixed, c, 1)
        self.scale, self.activate = scale, activate

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x (b, c, h, w)."""
        y = x + self.scale * self.project(self.branches(x))
        return F.relu(y) if self.activate else y


def build_stem(channels: int) -> list[nn.Module]:
    """Return the layers before the first block: figure 14."""
    return [
        Conv(channels, 32, 3, 2),
        Conv(32, 32, 3),
        Conv(32, 64, 3, padding=1),
        nn.MaxPool2d(3, 2),
        Conv(64, 80, 1),
        Conv(80, 192, 3),
        Conv(192, 256, 3, 2),
    ]


def build_block35() -> nn.Module:
    """Return Inception-ResNet-A: figure 10."""
    branches = Branches(
        Conv(256, 32, 1),
        nn.Sequential(Conv(256, 32, 1), Conv(32, 32, 3, padding=1)),
        nn.Sequential(Conv(256, 32, 1), Conv(32, 32, 3, padding=1), Conv(32, 32, 3, padding=1)),
    )
    return ScaledResidual(branches, 96, 256, 0.17, True)


def build_mixed_6a() -> nn.Module:
    """Return Reduction-A, from 256 to 896 channels: figure 7."""
    return Branches(
        Conv(256, 384, 3, 2),
        nn.Sequential(Conv(256, 192, 1), Conv(192, 192, 3, padding=1), Conv(192, 256, 3, 2)),
        nn.MaxPool2d(3, 2),
    )


def build_block17() -> nn.Module:
    """Return Inception-ResNet-B: figure 11."""
    branches = Branches(
        Conv(896, 128, 1),
        nn.Sequential(
            Conv(896, 128, 1),
            Conv(128, 128, (1, 7), padding=(0, 3)),
            Conv(128, 128, (7, 1), padding=(3, 0)),
        ),
    )
    return ScaledResidual(branches, 256, 896, 0.1, True)


def build_mixed_7a() -> nn.Module:
    """Return Reduction-B, from 896 to 1,792 channels: figure 12."""
    return Branches(
        nn.Sequential(Conv(896, 256, 1), Conv(256, 384, 3, 2)),
        nn.Sequential(Conv(896, 256, 1), Conv(256, 256, 3, 2)),
        nn.Sequential(Conv(896, 256, 1), Conv(256, 256, 3, padding=1), Conv(256, 256, 3, 2)),
        nn.MaxPool2d(3, 2),
    )


def build_block8(scale: float, activate: bool = True) -> nn.Module:
    """Return Inception-ResNet-C: figure 13."""
    branches = Branches(
        Conv(FEATURES, 192, 1),
        nn.Sequential(
            Conv(FEATURES, 192, 1),
            Conv(192, 192, (1, 3), padding=(0, 1)),
            Conv(192, 192, (3, 1), padding=(1, 0)),
        ),
    )
    return ScaledResidual(branches, 384, FEATURES, scale, activate)
