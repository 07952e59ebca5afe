"""Moving averages of weights: Polyak, Juditsky, 1992, with exponential forgetting."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """a <- d a + (1 - d) w after each step, for weights and running statistics; what is not a real number is copied.

    d = min(decay, (1 + t) / (10 + t)) at step t = 0, 1...: early weights are forgotten sooner.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module, t: int) -> None:
        d = min(self.decay, (1 + t) / (10 + t))
        pairs = list(zip(_tensors(self.net), _tensors(net), strict=True))
        real = [(a, w) for a, w in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in real], [w for _, w in real], 1 - d)
        for a, w in pairs:
            if not a.is_floating_point():
                a.copy_(w)


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]
