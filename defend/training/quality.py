"""How good a trained component is on validation images: one number, higher is better."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from defend.classifier import Classifier
from defend.learned import Learned
from defend.noise import Noise
from defend.purifier import Purifier

CUT = 512  # images at a time


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images x (n, c, h, w) that get their label y (n,); both are brought to the network, cut by cut."""
    device = next(net.parameters()).device
    return sum(
        int((net(a.to(device)).argmax(1).cpu() == b.cpu()).sum())
        for a, b in zip(x.split(CUT), y.split(CUT), strict=True)
    ) / len(x)


@torch.no_grad()
def psnr(purifier: Purifier, x: Tensor) -> float:
    """Of purified images against x (n, c, h, w) themselves: -10 log10 of the mean square, in dB."""
    device = torch.device(purifier.device)
    noise = Noise.of(0, torch.arange(len(x), device=device))
    squares = [
        (purifier.purified(a.to(device), n) - a.to(device)).square().mean((1, 2, 3))
        for a, n in zip(x.split(CUT), noise.split(CUT), strict=True)
    ]
    return float(
        -10 * torch.cat(squares).mean().clamp(min=1e-12).log10()
    )  # 1e-12: a perfect copy counts as 120 dB


def quality(component: Learned, x: Tensor, y: Tensor) -> tuple[str, float]:
    """("accuracy", the share of right labels) of a classifier, ("PSNR", dB) of a purifier. x (n, c, h, w), y (n,)."""
    if isinstance(component, Classifier):
        return "accuracy", accuracy(component.network, x, y)
    if isinstance(component, Purifier):
        return "PSNR", psnr(component, x)
    raise TypeError(f"{type(component).__name__} is neither a classifier nor a purifier")
