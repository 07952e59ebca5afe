"""How good a trained component is on validation images: one number, higher is better."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.classifier import Classifier
from defend.learned import Learned
from defend.noise import Noise
from defend.purifier import Purifier

CUT = 512  # images at a time


@torch.no_grad()
def quality(component: Learned, x: Tensor, y: Tensor) -> tuple[str, float]:
    """("accuracy", the share of right labels) of a classifier, ("PSNR", dB) of a purifier. x (n, c, h, w), y (n,)."""
    if isinstance(component, Classifier):
        device = next(component.network.parameters()).device
        right = sum(int((component.network(a.to(device)).argmax(1).cpu() == b).sum()) for a, b in zip(x.split(CUT), y.split(CUT), strict=True))
        return "accuracy", right / len(x)
    if isinstance(component, Purifier):
        device = torch.device(component.device)
        noise = Noise.of(0, torch.arange(len(x), device=device))
        squares = [(component.purified(a.to(device), n) - a.to(device)).square().mean((1, 2, 3)) for a, n in zip(x.split(CUT), noise.split(CUT), strict=True)]
        return "PSNR", float(-10 * torch.cat(squares).mean().clamp(min=1e-12).log10())
    raise TypeError(f"{type(component).__name__} is neither a classifier nor a purifier")
