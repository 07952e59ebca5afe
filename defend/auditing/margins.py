"""How far an attack without gradients lowered the margins of the images that it was given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defend.auditing.context import Context
from defend.benchmarks.scoring import SELECT_DRAWS
from defend.losses import negative_margin

# Ours: the share of the clean margin below which an attack stood still. A search that goes on until
# twice its steps gain no more than that would otherwise end where it does nothing.
STANDSTILL = 0.05


def mean_margin(context: Context, x: Tensor, rows: Tensor) -> Tensor:
    """Return the mean margin of images of these rows over draws of its own: (b,)."""
    draws = SELECT_DRAWS if context.stochastic else 1
    total = torch.zeros(len(rows), device=x.device)
    for draw in range(draws):
        logits = context.logits(x, context.noise_of(rows, "margin", draw))
        total -= negative_margin(logits, context.y[rows])
    return total / draws


@dataclass
class MarginsLowered:
    """The margins of clean images, and what an attack took of them, over all its parts."""

    clean: float = 0.0
    gained: float = 0.0

    def add(self, clean: Tensor, attacked: Tensor) -> None:
        """Add the margins of some images before and after the attack: (b,) each."""
        self.clean += float(clean.abs().sum())
        self.gained += float((clean - attacked).clamp(min=0).sum())

    @property
    def share(self) -> float:
        """Return which share of the clean margins was gained; 0 before any attack."""
        return self.gained / self.clean if self.clean else 0.0

    @property
    def standstill(self) -> str:
        """Return that the attack hardly moved anything; "" if it did."""
        if self.share >= STANDSTILL:
            return ""
        return f"it lowers the mean margin by {100 * self.share:.1f} % of the clean one"
