"""ResNet-20 for CIFAR-10: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", arXiv:1512.03385, section 4.2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.training.recipes import fit_classifier

BLOCKS = 3  # the paper's n: 6n + 2 = 20 layers
WIDTHS = (16, 32, 64)


class ResNet20(Classifier):
    """Three stages of three blocks; 269,722 parameters for 3 channels and 10 classes, the paper's 0.27 M."""

    card = ClassifierCard(paper="arXiv:1512.03385", licence="MIT")
    fit = fit_classifier

    def build(self) -> nn.Module:
        stages = [
            Block(WIDTHS[max(0, s - (b == 0))], w, stride=1 + (s > 0 and b == 0))
            for s, w in enumerate(WIDTHS)
            for b in range(BLOCKS)
        ]
        net = nn.Sequential(
            Normalise((0.5,) * self.channels, (0.25,) * self.channels),
            conv(self.channels, WIDTHS[0]),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(inplace=True),
            *stages,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(WIDTHS[-1], self.classes),
        )
        for m in net.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(m.weight)  # the paper's reference [13]
        return net


class Block(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))), figure 2; the shortcut has no parameters: option A, zeros for new channels."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(c_in, c_out, stride), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = conv(c_out, c_out), nn.BatchNorm2d(c_out)
        self.stride, self.added = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        f = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(self.shortcut(x) + f, inplace=True)

    def shortcut(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c + added, h / stride, w / stride)."""
        if not self.added:
            return x
        return F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added // 2)
        )


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
