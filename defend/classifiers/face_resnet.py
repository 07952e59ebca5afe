"""A small residual network for faces: He, Zhang, Ren, Sun, arXiv:1512.03385, with the output layers
of Deng, Guo, Xue, Zafeiriou, arXiv:1801.07698, section 3.2.

The papers are "Deep residual learning for image recognition" and "ArcFace: additive angular margin
loss for deep face recognition".
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from defend.classifier import ClassifierCard, Normalise
from defend.embedding import EmbeddingClassifier
from defend.training.margin import MarginRecipe

STAGES = 4  # each halves the image
BLOCKS = 2  # of each stage: ResNet-18
# With fewer channels oneDNN's 1x1 convolutions of stride 2 write out of bounds in channels_last
# (seen with torch 2.11 on CPUs with AVX2: `free(): invalid next size`).
WIDTH_UNIT = 8
SMALLEST: int = 2**STAGES  # pixels a side, of which one is left after the last stage


class FaceResNet(EmbeddingClassifier):
    """Embed faces by a ResNet-18 whose stages have width, 2, 4 and 8 times `width` channels.

    The first convolution is 3x3 with stride 2. The last feature map is not averaged: dropout, a
    linear layer and a batch norm turn it into the embedding, because the place of a feature in an
    aligned face carries information.
    """

    card = ClassifierCard(
        paper="arXiv:1512.03385, arXiv:1801.07698",
        licence="MIT; weights: research on face recognition (LFW)",
    )
    recipe = MarginRecipe
    uses = frozenset({"scale", "dropout"})
    size: int = 64
    classes: int = 158
    width: int = 32  # channels of the first stage
    dropout: float = 0.4  # before the linear layer, in training only

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        super().validate()
        is_multiple = self.width >= WIDTH_UNIT and self.width % WIDTH_UNIT == 0
        self.require(is_multiple, "width", f"a multiple of {WIDTH_UNIT}")
        self.require(0 <= self.dropout < 1, "dropout", "0 <= dropout < 1")
        self.require(self.size % SMALLEST == 0, "size", f"a multiple of {SMALLEST}")

    def build_embedder(self) -> nn.Module:
        """Return the untrained network from images to embeddings."""
        net = nn.Sequential(
            Normalise((0.5,) * self.channels, (0.25,) * self.channels),
            nn.Conv2d(self.channels, self.width, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(self.width),
            nn.ReLU(inplace=True),
            *build_stages(self.width),
            nn.Flatten(),
            nn.Dropout(self.dropout),
            nn.Linear(self._features, self.embedding, bias=False),
            nn.BatchNorm1d(self.embedding),
        )
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        return net

    @property
    def _features(self) -> int:
        """Return the number of values in the last feature map."""
        side = self.size // SMALLEST
        return self.width * SMALLEST // 2 * side * side


def build_stages(width: int) -> list[nn.Module]:
    """Return the eight blocks. Each stage after the first begins with a block of stride 2."""
    blocks: list[nn.Module] = []
    c_in = width
    for stage in range(STAGES):
        c_out = width * 2**stage
        for block in range(BLOCKS):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(FaceBlock(c_in, c_out, stride))
            c_in = c_out
    return blocks


class FaceBlock(nn.Module):
    """Compute relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))): arXiv:1512.03385, figure 2.

    Where the number of channels changes, the shortcut is a 1x1 convolution with a batch norm
    (option B).
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if c_in != c_out or stride != 1:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor (b, c_out, h / stride, w / stride) from x (b, c_in, h, w)."""
        activated = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(activated))
        return F.relu(self.shortcut(x) + residual, inplace=True)
