"""ResNet-20 for CIFAR-10: He, Zhang, Ren, Sun, arXiv:1512.03385, section 4.2.

The paper is "Deep residual learning for image recognition".
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.training.recipes import ClassifierRecipe

BLOCKS = 3  # the paper's n: 6n + 2 = 20 layers
WIDTHS = (16, 32, 64)  # channels of the three stages


class ResNet20(Classifier):
    """Classify by three stages of three residual blocks.

    It has 269,722 parameters for 3 channels and 10 classes; the paper says 0.27 M.
    """

    card = ClassifierCard(paper="arXiv:1512.03385", licence="MIT")
    recipe = ClassifierRecipe

    def build(self) -> nn.Module:
        """Return the untrained network, initialised as in the paper's reference [13]."""
        stages = build_stages()
        net = nn.Sequential(
            Normalise((0.5,) * self.channels, (0.25,) * self.channels),
            conv3x3(self.channels, WIDTHS[0]),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(inplace=True),
            *stages,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(WIDTHS[-1], self.classes),
        )
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        return net


def build_stages() -> list[BasicBlock]:
    """Return the nine blocks. The second and the third stage begin with a block of stride 2."""
    blocks = []
    c_in = WIDTHS[0]
    for width in WIDTHS:
        for _ in range(BLOCKS):
            blocks.append(BasicBlock(c_in, width, stride=1 if c_in == width else 2))
            c_in = width
    return blocks


class BasicBlock(nn.Module):
    """Compute relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))): figure 2 of the paper.

    The shortcut has no parameters: it is option A, with zeros in the additional channels.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(c_in, c_out, stride), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = conv3x3(c_out, c_out), nn.BatchNorm2d(c_out)
        self.stride, self.added = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor (b, c_out, h / stride, w / stride) from x (b, c_in, h, w)."""
        activated = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(activated))
        return F.relu(self.shortcut(x) + residual, inplace=True)

    def shortcut(self, x: Tensor) -> Tensor:
        """Return x (b, c, h, w) as (b, c + added, h / stride, w / stride)."""
        if not self.added:
            return x
        strided = x[:, :, :: self.stride, :: self.stride]
        return F.pad(strided, (0, 0, 0, 0, self.added // 2, self.added // 2))


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias."""
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
