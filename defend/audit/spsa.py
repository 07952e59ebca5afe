"""SPSA, an attack that measures its gradient by differences of the loss along random signs: Uesato, O'Donoghue, van den Oord, Kohli, arXiv:1802.05666.

There the steps are Adam's; here they are signs, as in PGD.
"""

from __future__ import annotations

import torch
from torch import Tensor

from defend.losses import excess
from defend.noise import Noise
from defend.norms import per_image, project, random_start, signs
from defend.target import Target

WIDTH = 0.25  # of the differences, in eps: wide enough to cross the steps of a quantiser


def spsa(
    target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise, steps: int, pairs: int
) -> Tensor:
    """PGD in L-inf along sum_i u_i (f(x + h u_i) - f(x - h u_i)), u_i random signs, h = eps / 4, f the excess. Forwards: 2 pairs steps.

    An image keeps its first wrong iterate where the target is deterministic, and its last one elsewhere.
    """
    adv, many = random_start(x, eps, "Linf", noise), target.copies(pairs)
    for step in range(steps):
        wrong = (
            target.logits(adv).argmax(1) != y
            if target.may_drop
            else torch.zeros_like(y, dtype=torch.bool)
        )
        slope = _slope(many, adv, y, WIDTH * eps, noise.fork(str(step)), pairs)
        moved = project(adv + 2.5 * eps / steps * slope.sign(), x, eps, "Linf")
        adv = torch.where(per_image(wrong, x), adv, moved)
    return adv


def _slope(many: Target, x: Tensor, y: Tensor, h: float, noise: Noise, pairs: int) -> Tensor:
    """(b, c, h, w). Some images at a time: each takes 2 pairs copies."""
    size = max(1, many.purifier.max_batch // (2 * pairs))
    cuts = torch.arange(len(x), device=x.device).split(size)
    copies = [
        torch.arange(pairs * int(at[0]), pairs * (int(at[-1]) + 1), device=x.device) for at in cuts
    ]
    return torch.cat(
        [
            _of_some(many.take(c.repeat_interleave(2)), x[at], y[at], h, noise.take(at), pairs)
            for at, c in zip(cuts, copies, strict=True)
        ]
    )


def _of_some(many: Target, x: Tensor, y: Tensor, h: float, noise: Noise, pairs: int) -> Tensor:
    """many: each copy twice. Both arms of a difference see the same draw; else it would be the purifier's noise, and no slope."""
    wide = x.repeat_interleave(pairs, 0)
    u = signs(wide, noise.copies(pairs))
    both = torch.stack([(wide + h * u).clamp(0, 1), (wide - h * u).clamp(0, 1)], 1).flatten(0, 1)
    rise = excess(many.logits(both), y.repeat_interleave(2 * pairs)).unflatten(0, (-1, 2))
    slope: Tensor = (u * per_image(rise[:, 0] - rise[:, 1], u)).unflatten(0, (-1, pairs)).sum(1)
    return slope
