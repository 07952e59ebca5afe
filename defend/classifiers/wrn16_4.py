"""WRN-16-4: Zagoruyko, Komodakis, "Wide residual networks", arXiv:1605.07146, section 2 and table 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.training.recipes import fit_classifier

BLOCKS = 2  # the paper's N: 6N + 4 = 16 layers
WIDEN = 4  # the paper's k
WIDTHS = (16 * WIDEN, 32 * WIDEN, 64 * WIDEN)


class WideResNet(Classifier):
    """Three groups of two pre-activation blocks B(3, 3), without dropout; 2,748,890 parameters, the paper's 2.7 M."""

    card = ClassifierCard(paper="arXiv:1605.07146", licence="MIT")
    fit = fit_classifier

    def build(self) -> nn.Module:
        before = (16, *WIDTHS)
        groups = [
            Block(before[g] if b == 0 else w, w, stride=1 + (g > 0 and b == 0))
            for g, w in enumerate(WIDTHS)
            for b in range(BLOCKS)
        ]
        net = nn.Sequential(
            Normalise((0.5,) * self.channels, (0.25,) * self.channels),
            nn.Conv2d(self.channels, 16, 3, padding=1, bias=False),
            *groups,
            nn.BatchNorm2d(WIDTHS[-1]),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(WIDTHS[-1], self.classes),
        )
        for m in net.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")
        return net


class Block(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), figure 1c; where the width changes, a 1x1 convolution of the activated input replaces x."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = (
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False),
        )
        self.bn2, self.conv2 = (
            nn.BatchNorm2d(c_out),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
        )
        self.project = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        f: Tensor = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return f + (x if self.project is None else self.project(a))
