"""Moving averages of weights: Polyak, Juditsky, 1992, with exponential forgetting."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Keep a copy of a network whose weights are a moving average: a <- d a + (1 - d) w.

    d = min(decay, (1 + t) / (10 + t)) at step t = 0, 1, 2...: early weights are forgotten sooner.
    Floating-point buffers (running statistics) are averaged too; other buffers (counters) are
    copied. So are values that are infinite or NaN at first, as those of a mask, until both are
    finite.
    """

    # torch.optim.swa_utils.AveragedModel would not be shorter. Its first update copies the weights
    # instead of averaging them, so its counter would have to start at 1, and a resumed run would
    # have to restore it. Its averaging function gets the counter as a tensor on the device, so that
    # computing d would wait for the GPU at every step.

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        initial = _TensorsByType(self.net).floating
        # Found once: a test at each step would wait for the GPU.
        self._not_finite = [k for k, t in enumerate(initial) if not t.isfinite().all()]

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Average the weights of `net` in; `step` is t above."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = _TensorsByType(self.net)
        weights = _TensorsByType(net)
        before = {k: averages.floating[k].clone() for k in self._not_finite}
        torch._foreach_lerp_(averages.floating, weights.floating, 1 - decay)
        for k, average_before in before.items():
            average, value = averages.floating[k], weights.floating[k]
            is_finite = average_before.isfinite() & value.isfinite()
            average.copy_(torch.where(is_finite, average, value))
        for average, value in zip(averages.other, weights.other, strict=True):
            average.copy_(value)


class _TensorsByType:
    """The parameters and buffers of a network: those in floating point, and the others."""

    def __init__(self, net: nn.Module) -> None:
        tensors = [*net.parameters(), *net.buffers()]
        self.floating = [t for t in tensors if t.is_floating_point()]
        self.other = [t for t in tensors if not t.is_floating_point()]
