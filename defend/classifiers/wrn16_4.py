"""WRN-16-4: Zagoruyko, Komodakis, arXiv:1605.07146, section 2 and table 1.

The paper is "Wide residual networks".
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.training.recipes import ClassifierRecipe

BLOCKS = 2  # the paper's N: 6N + 4 = 16 layers
WIDEN = 4  # the paper's k
FIRST_WIDTH = 16  # channels of the first convolution
WIDTHS = (16 * WIDEN, 32 * WIDEN, 64 * WIDEN)  # channels of the three groups


class WideResNet(Classifier):
    """Classify by three groups of two pre-activation blocks B(3, 3), without dropout.

    It has 2,748,890 parameters for 3 channels and 10 classes; the paper says 2.7 M.
    """

    card = ClassifierCard(paper="arXiv:1605.07146", licence="MIT")
    recipe = ClassifierRecipe

    def build(self) -> nn.Module:
        """Return the untrained network."""
        groups = build_groups()
        net = nn.Sequential(
            Normalise((0.5,) * self.channels, (0.25,) * self.channels),
            nn.Conv2d(self.channels, FIRST_WIDTH, 3, padding=1, bias=False),
            *groups,
            nn.BatchNorm2d(WIDTHS[-1]),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(WIDTHS[-1], self.classes),
        )
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        return net


def build_groups() -> list[PreActivationBlock]:
    """Return the six blocks. The second and the third group begin with a block of stride 2."""
    blocks = []
    c_in = FIRST_WIDTH
    for group, width in enumerate(WIDTHS):
        for block in range(BLOCKS):
            stride = 2 if group > 0 and block == 0 else 1
            blocks.append(PreActivationBlock(c_in, width, stride))
            c_in = width
    return blocks


class PreActivationBlock(nn.Module):
    """Compute x + conv(relu(bn(conv(relu(bn(x)))))): figure 1c of the paper.

    Where the number of channels changes, a 1x1 convolution of the activated input replaces x.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.project = None
        if c_in != c_out:
            self.project = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor (b, c_out, h / stride, w / stride) from x (b, c_in, h, w)."""
        activated = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        shortcut = x if self.project is None else self.project(activated)
        return residual + shortcut
