"""Purifiers that break their contract in a known way. The benchmark must notice it, and must keep
the other purifiers out of it.
"""

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from defend import Card, Noise, Purifier

DARK = 0.315  # a mean; more than a third of the first 32 digits, and none of the first four


class Misbehaves(Purifier):
    """Break the contract in the way that ``how`` names."""

    card = Card(paper="none: a broken example", gradient="identity", stochastic=False)
    how: Literal[
        "writes", "nan", "random", "late", "dark", "raises", "dies", "cuts", "remembers", "centres"
    ]

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        match self.how:
            case "writes":
                return x.mul_(0.5)
            case "dies":
                os._exit(3)
            case "cuts":
                return x[..., :-1]
            case "centres":
                return (x - x.mean(0, keepdim=True) + 0.5).clamp(0, 1)
            case "remembers":
                return self._nearest_remembered(x)
            case "nan":
                return torch.full_like(x, torch.nan)
            case "random":
                return self._noisy(x, noise)
            case "late":  # it breaks its card for adversarial images alone
                return x if _is_clean(x) else self._noisy(x, noise)
            case "dark":  # it breaks its card for dark images alone
                is_dark = (x.mean((1, 2, 3)) < DARK)[:, None, None, None]
                noisy = (x + 0.5 * torch.randn_like(x)).clamp(0, 1)
                return torch.where(is_dark, noisy, x)
            case "raises":
                if not _is_clean(x):
                    raise RuntimeError("adversarial images are not to my taste")
                return x

    def _noisy(self, x: Tensor, noise: Noise) -> Tensor:
        return (x + 0.3 * noise.normal(x)).clamp(0, 1)

    def _nearest_remembered(self, x: Tensor) -> Tensor:
        """Replace an image by the first one near it: an adversarial image becomes the clean one."""
        memory = self.__dict__.setdefault("memory", x[:0].detach().clone())
        if len(memory):
            distances = torch.cdist(x.detach().flatten(1), memory.flatten(1), p=torch.inf)
            distance, nearest = distances.min(1)
            x = torch.where((distance < 0.25)[:, None, None, None], memory[nearest], x)
        self.__dict__["memory"] = torch.cat([memory, x.detach()])
        return x


def _is_clean(x: Tensor) -> bool:
    """Return True for images of the data set `digits`, which have 17 shades of grey."""
    return torch.equal(16 * x, (16 * x).round())


class Careless(Purifier):
    """Draw from the global generator: at each call, or once when the purifier is created."""

    card = Card(paper="none: a broken example", gradient="identity", stochastic=True)
    once: bool

    def validate(self) -> None:
        self.__dict__["shift"] = 0.2 * torch.rand(())

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        shift = self.__dict__["shift"] if self.once else 0.2 * torch.randn_like(x)
        return (x + shift + 0.01 * noise.normal(x)).clamp(0, 1)


class FromFile(Purifier):
    """Multiply by the number that a file holds."""

    card = Card(paper="none: an example", gradient="exact", stochastic=False)
    file: str

    def validate(self) -> None:
        self.__dict__["factor"] = float(Path(self.file).read_text())

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x * self.__dict__["factor"]


class Detached(Purifier):
    """Return a copy of the image, and claim a gradient that the copy does not have."""

    card = Card(paper="none: a broken example", gradient="exact", stochastic=False)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x.detach().clone()
