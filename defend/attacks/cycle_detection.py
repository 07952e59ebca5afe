"""Detect cycles in a deterministic iteration, so that an attack need not compute them.

Sign steps of one size fall into short cycles (arXiv:2503.19347). Each iterate is therefore compared
with one reference iterate, which is replaced every MAX_PERIOD steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_PERIOD = 8  # steps: the longest cycle that is detected


class CycleDetector:
    """Count how many steps of x(k + 1) = f(x(k)) each image still needs to reach x(steps)."""

    def __init__(self, x: Tensor, steps: int) -> None:
        """Start from x = x(0), of shape (b, c, h, w)."""
        self.steps = steps
        self.reference = x
        self.reference_step = 0
        self.steps_left = torch.full((len(x),), steps, device=x.device)

    def take(self, rows: Tensor) -> None:
        """Keep only these images."""
        self.reference = self.reference[rows]
        self.steps_left = self.steps_left[rows]

    def observe(self, x: Tensor, k: int) -> None:
        """Update `steps_left` after step k = 1, 2, ..., where x = x(k).

        If x(k) equals the reference, the images repeat with period p = k - reference_step, and
        x(steps) is reached in (steps - k) mod p more steps.
        """
        self.steps_left = (self.steps_left - 1).clamp(min=0)
        is_repeated = (x == self.reference).flatten(1).all(1) & (self.steps_left > 0)
        steps_in_cycle = (self.steps - k) % (k - self.reference_step)
        self.steps_left = torch.where(is_repeated, steps_in_cycle, self.steps_left)
        if k % MAX_PERIOD == 0:
            self.reference, self.reference_step = x, k
