"""A plain PGD that records every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defend.ascent import ascend
from defend.auditing.context import NORM
from defend.target import Loss, Target

TRACE_STEPS = 40
STEP_FACTOR = 2.5  # one step has the length STEP_FACTOR * eps / steps


@dataclass(frozen=True)
class PGDTrace:
    """The course of a PGD on b images."""

    x_adv: Tensor  # the last iterate (b, c, h, w)
    losses: Tensor  # (steps + 1, b)
    is_wrong: Tensor  # bool (steps + 1, b): misclassified
    no_gradient: Tensor  # bool (b,): the first gradient is zero, or not finite


def trace_pgd(target: Target, x: Tensor, y: Tensor, eps: float, steps: int, loss: Loss) -> PGDTrace:
    """Run PGD in L-inf from the clean images x (b, c, h, w); every image takes every step."""
    x_adv = x
    losses: list[Tensor] = []
    is_wrong: list[Tensor] = []
    unusable: list[Tensor] = []
    for _ in range(steps):
        gradient, values, logits = target.gradient(x_adv, y, loss)
        losses.append(values)
        is_wrong.append(logits.argmax(1) != y)
        unusable.append(_is_unusable(gradient))
        step = STEP_FACTOR * eps / steps
        x_adv = ascend(x_adv, gradient.nan_to_num(), step, x, eps, NORM)
    logits = target.logits(x_adv)
    losses.append(loss(logits, y))
    is_wrong.append(logits.argmax(1) != y)
    return PGDTrace(x_adv, torch.stack(losses), torch.stack(is_wrong), unusable[0])


def _is_unusable(gradient: Tensor) -> Tensor:
    """Return True for images whose gradient (b, c, h, w) is zero or not finite: bool (b,)."""
    flat = gradient.flatten(1)
    is_finite = flat.isfinite().all(1)
    is_nonzero = flat.abs().amax(1) > 0
    return ~(is_finite & is_nonzero)
