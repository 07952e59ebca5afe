"""When the rest of a deterministic iteration is known: a point that came before comes again, and all after it with it.

Sign steps of one size fall into short circles (arXiv:2503.19347), so each point is compared with a single one, kept for KEEP steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

KEEP = 8  # steps: the longest circle that is found


class Repeats:
    """For x(k + 1) = f(x(k)) and `steps` of these: how many are left to do for each image, if x(steps) is wanted."""

    def __init__(self, x: Tensor, steps: int) -> None:
        self.steps, self.kept, self.kept_at = steps, x, 0
        self.left = torch.full((len(x),), steps, device=x.device)

    def take(self, rows: Tensor) -> None:
        self.kept, self.left = self.kept[rows], self.left[rows]

    def saw(self, x: Tensor, k: int) -> None:
        """x(k), k = 1, 2, ... In a circle of p steps, x(steps) is the point (steps - k) mod p steps on."""
        self.left = (self.left - 1).clamp(min=0)
        again = (x == self.kept).flatten(1).all(1) & (self.left > 0)
        self.left = torch.where(again, (self.steps - k) % (k - self.kept_at), self.left)
        if k % KEEP == 0:
            self.kept, self.kept_at = x, k
