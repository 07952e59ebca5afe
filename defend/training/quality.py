"""The quality of a trained component on validation images: one number, higher is better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defend.classifier import Classifier
from defend.learned import Learned
from defend.noise import Noise
from defend.purifier import Purifier

CHUNK = 512  # images evaluated together
SMALLEST_ERROR = 1e-12  # mean square error below which a copy counts as perfect: 120 dB


@dataclass(frozen=True)
class Quality:
    """A score and the name of its measure."""

    measure: str  # "accuracy" for a classifier, "PSNR" (in dB) for a purifier
    value: float


def measure_quality(component: Learned, x: Tensor, y: Tensor) -> Quality:
    """Return the accuracy of a classifier or the PSNR of a purifier on x (n, c, h, w), y (n,)."""
    if isinstance(component, Classifier):
        return Quality("accuracy", accuracy(component.network, x, y))
    if isinstance(component, Purifier):
        return Quality("PSNR", psnr(component, x))
    raise TypeError(
        f"expected a classifier or a purifier to measure, got {type(component).__name__}"
    )


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of images x (n, c, h, w) that get their label y (n,).

    The images are moved to the network's device one chunk at a time.
    """
    device = next(net.parameters()).device
    correct = 0
    for images, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        predictions = net(images.to(device)).argmax(1).cpu()
        correct += int((predictions == labels.cpu()).sum())
    return correct / len(x)


@torch.no_grad()
def psnr(purifier: Purifier, x: Tensor) -> float:
    """Return the PSNR of purified images against x (n, c, h, w): -10 log10(mean square), in dB."""
    device = torch.device(purifier.device)
    noise = Noise.of(0, torch.arange(len(x), device=device))
    errors = []
    for images, chunk_noise in zip(x.split(CHUNK), noise.split(CHUNK), strict=True):
        images = images.to(device)
        difference = purifier.purified(images, chunk_noise) - images
        errors.append(difference.square().mean((1, 2, 3)))
    return float(-10 * torch.cat(errors).mean().clamp(min=SMALLEST_ERROR).log10())
