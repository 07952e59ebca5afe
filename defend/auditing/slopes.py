"""How far a gradient is the slope of the scored loss: compared with finite differences.

The gradient and the differences are means over the same draws, as many as an attack averages over.
An attack takes its copies of an image side by side, and a score takes one at a time: so do the
gradient and the differences here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from defend.auditing.context import Context
from defend.auditing.spsa import WIDTH
from defend.gradients import Backward
from defend.losses import negative_margin
from defend.norms import random_signs
from defend.target import Target

DIRECTIONS = 20  # of finite differences, for each image
SMALLEST = 1e-300  # avoids 0 / 0


class FrozenTarget(Target):
    """A target that uses the same draws at every call, as if the attacker knew the noise."""

    first_draw = 0

    def _advance(self, n: int) -> Tensor:
        return torch.full_like(self._rows, self.first_draw)


def frozen_target(
    context: Context, rows: Tensor, backward: Backward | None = None, copies: int = 1
) -> FrozenTarget:
    """Return the audited pipeline on the same draws of these rows at every call.

    backward replaces its gradient, which is averaged over so many copies.
    """
    noise = context.noise.take(rows).fork("frozen")
    return FrozenTarget(context.network, context.purifier, noise, backward, copies, scored=True)


def declared_changes(
    context: Context, x: Tensor, backward: Backward | None, rows: Tensor | None = None
) -> Tensor:
    """Return g (x_high - x_low) of the images at x: (images, directions).

    g: the gradient of the negative margin, by default the declared one, averaged over the copies of
    an attack. x_high and x_low are x + h u and x - h u in the box, for each random direction u.
    rows: of these images, by default the probe images.
    """
    rows = context.probe_rows if rows is None else rows
    target = frozen_target(context, rows, backward, context.budget.eot)
    gradient, _, _ = target.gradient(x, context.y[rows], negative_margin)
    changes = [(gradient * (high - low)).flatten(1) for high, low in _sides(context, x, rows)]
    return torch.stack([change.double().sum(1) for change in changes], 1)


def measured_changes(context: Context, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return f(x_high) - f(x_low) for the same directions: (images, directions).

    f is the negative margin, averaged over the same draws, each of which is a call of its own.
    """
    rows = context.probe_rows if rows is None else rows
    changes = [
        _mean_loss(context, high, rows) - _mean_loss(context, low, rows)
        for high, low in _sides(context, x, rows)
    ]
    return torch.stack(changes, 1)


def _mean_loss(context: Context, x: Tensor, rows: Tensor) -> Tensor:
    target = frozen_target(context, rows)
    total = torch.zeros(len(x), dtype=torch.double, device=x.device)
    for draw in range(context.budget.eot):
        target.first_draw = draw
        total += negative_margin(target.logits(x), context.y[rows]).double()
    return total / context.budget.eot


def _sides(context: Context, x: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield x + h u and x - h u in the box for each direction u."""
    h = WIDTH * context.eps
    noise = context.noise.take(rows).fork("directions")
    for k in range(DIRECTIONS):
        u = random_signs(x, noise.fork(str(k)))
        yield (x + h * u).clamp(0, 1), (x - h * u).clamp(0, 1)


def correlate(declared: Tensor, measured: Tensor) -> float:
    """Return the correlation of two sets of changes over images and directions; 0 if there is none.

    Each image counts the same.
    """
    slopes = torch.stack([declared, measured])  # (2, images, directions)
    scale = slopes.square().mean(2, keepdim=True).sqrt().clamp(min=SMALLEST)
    return float(torch.corrcoef((slopes / scale).flatten(1))[0, 1].nan_to_num(nan=0.0))
