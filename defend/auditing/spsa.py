"""SPSA, an attack that estimates its gradient from differences of the loss along random signs.

Source: Uesato, O'Donoghue, van den Oord, Kohli, arXiv:1802.05666. They take Adam's steps; here the
steps are signs, as in PGD.
"""

from __future__ import annotations

import torch
from torch import Tensor

from defend.ascent import ascend
from defend.auditing.context import NORM
from defend.losses import negative_margin
from defend.noise import Noise
from defend.norms import per_image, random_signs, random_start
from defend.target import Target

WIDTH = 0.25  # of the differences, in eps: wide enough to cross the steps of a quantiser
STEP_FACTOR = 2.5  # one step has the length STEP_FACTOR * eps / steps


def spsa(
    target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise, steps: int, pairs: int
) -> Tensor:
    """Attack in L-inf along sum_i u_i (f(x + h u_i) - f(x - h u_i)), and return x_adv.

    The u_i are `pairs` random sign images, h = WIDTH * eps, f the negative margin. Each image costs
    2 * pairs * steps forwards. It keeps its first misclassified iterate if the target is
    deterministic, and its last iterate otherwise.
    """
    x_adv = random_start(x, eps, NORM, noise)
    copies = target.copies(pairs)
    for step in range(steps):
        is_final = torch.zeros_like(y, dtype=torch.bool)
        if target.may_drop:
            is_final = target.logits(x_adv).argmax(1) != y
        gradient = _estimate_gradient(copies, x_adv, y, WIDTH * eps, noise.fork(str(step)), pairs)
        moved = ascend(x_adv, gradient, STEP_FACTOR * eps / steps, x, eps, NORM)
        x_adv = torch.where(per_image(is_final, x), x_adv, moved)
    return x_adv


def _estimate_gradient(
    copies: Target, x: Tensor, y: Tensor, h: float, noise: Noise, pairs: int
) -> Tensor:
    """Return gradient estimates (b, c, h, w), computed for a few images at a time.

    copies: the target with `pairs` copies of each image. Each image takes 2 * pairs forwards.
    """
    batch = max(1, copies.purifier.images_at_once(x) // (2 * pairs))
    estimates = []
    for rows in torch.arange(len(x), device=x.device).split(batch):
        first, last = int(rows[0]), int(rows[-1])
        copy_rows = torch.arange(pairs * first, pairs * (last + 1), device=x.device)
        part = copies.take(copy_rows.repeat_interleave(2))
        estimates.append(_estimate_batch(part, x[rows], y[rows], h, noise.take(rows), pairs))
    return torch.cat(estimates)


def _estimate_batch(
    copies: Target, x: Tensor, y: Tensor, h: float, noise: Noise, pairs: int
) -> Tensor:
    """Return gradient estimates for images that fit into one batch.

    copies: every copy twice, so that both sides of a difference see the same draw. With two draws,
    the difference would measure the purifier's noise and not the slope.
    """
    repeated = x.repeat_interleave(pairs, 0)
    u = random_signs(repeated, noise.copies(pairs))
    high, low = (repeated + h * u).clamp(0, 1), (repeated - h * u).clamp(0, 1)
    both = torch.stack([high, low], 1).flatten(0, 1)
    labels = y.repeat_interleave(2 * pairs)
    losses = negative_margin(copies.logits(both), labels).unflatten(0, (-1, 2))
    differences = per_image(losses[:, 0] - losses[:, 1], u)
    estimate: Tensor = (u * differences).unflatten(0, (-1, pairs)).sum(1)
    return estimate
