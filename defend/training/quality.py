"""The quality of a trained component on validation images: one number, higher is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from defend.classifier import Classifier
from defend.learned import Learned
from defend.noise import Noise
from defend.purifier import Purifier

CHUNK = 512  # images evaluated together
SMALLEST_ERROR = 1e-12  # mean square error below which a copy counts as perfect: 120 dB
PSNR_TOLERANCE = 0.01  # dB, 0.2 % of the squared error

Advance = Callable[[int], None]  # called with the number of images that are done


def no_display(images: int) -> None:
    """Show nothing: the default of `Advance`."""


@dataclass(frozen=True)
class Quality:
    """A score and the name of its measure; higher is better."""

    measure: str  # as in "accuracy", or "PSNR" in dB
    value: float
    tolerance: float = 0.0  # how much of it 16-bit weights may cost
    images: int | None = None  # how many were measured, if not all


def measure_quality(
    component: Learned, x: Tensor, y: Tensor, advance: Advance = no_display
) -> Quality:
    """Return the accuracy of a classifier or the PSNR of a purifier on x (n, c, h, w), y (n,)."""
    if isinstance(component, Classifier):
        return Quality("accuracy", accuracy(component.network, x, y, advance))
    if isinstance(component, Purifier):
        return Quality("PSNR", psnr(component, x, advance), PSNR_TOLERANCE)
    raise TypeError(
        f"expected a classifier or a purifier to measure, got {type(component).__name__}"
    )


def device_of(component: Any) -> torch.device:
    """Return the device of the network of a learned component."""
    parameter: Tensor = next(component.net.parameters())
    return parameter.device


def split_images(
    x: Tensor, y: Tensor, device: torch.device, seed: int, size: int, advance: Advance = no_display
) -> Iterator[tuple[Tensor, Tensor, Noise]]:
    """Yield at most `size` images at a time with labels and noise, all on a device.

    The noise of an image depends on the seed and on its number alone.
    """
    noise = Noise.of(seed, torch.arange(len(x), device=device)).fork("val")
    batches = zip(x.split(size), y.split(size), noise.split(size), strict=True)
    for images, labels, image_noise in batches:
        yield images.to(device), labels.to(device), image_noise
        advance(len(images))


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor, advance: Advance = no_display) -> float:
    """Return the share of images x (n, c, h, w) that get their label y (n,).

    The images are moved to the network's device one chunk at a time.
    """
    device = next(net.parameters()).device
    correct = 0
    for images, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        predictions = net(images.to(device)).argmax(1).cpu()
        correct += int((predictions == labels.cpu()).sum())
        advance(len(images))
    return correct / len(x)


@torch.no_grad()
def psnr(purifier: Purifier, x: Tensor, advance: Advance = no_display) -> float:
    """Return the PSNR of purified images against x (n, c, h, w): -10 log10(mean square), in dB."""
    device = torch.device(purifier.device)
    noise = Noise.of(0, torch.arange(len(x), device=device))
    errors = []
    size = min(CHUNK, purifier.images_at_once(x))
    for images, chunk_noise in zip(x.split(size), noise.split(size), strict=True):
        images = images.to(device)
        difference = purifier.purified(images, chunk_noise) - images
        errors.append(difference.square().mean((1, 2, 3)))
        advance(len(images))
    return to_psnr(torch.cat(errors))


def to_psnr(squared_errors: Tensor) -> float:
    """Return the PSNR in dB of mean squared errors (n,), one for each image in [0, 1]."""
    return float(-10 * squared_errors.mean().clamp(min=SMALLEST_ERROR).log10())
