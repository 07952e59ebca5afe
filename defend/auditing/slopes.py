"""How far a gradient is the slope of the scored loss: compared with finite differences on one draw.

The changes of the loss are those along random directions, over a quarter of eps to both sides.
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
    """A target that uses the same draw at every call, as if the attacker knew the noise."""

    def _advance(self, n: int) -> Tensor:
        return torch.zeros_like(self._rows)


def frozen_target(context: Context, rows: Tensor, backward: Backward | None = None) -> FrozenTarget:
    """Return the audited pipeline on one draw of these rows; backward replaces its gradient."""
    noise = context.noise.take(rows).fork("frozen")
    return FrozenTarget(context.network, context.purifier, noise, backward, scored=True)


def declared_changes(context: Context, x: Tensor, backward: Backward | None) -> Tensor:
    """Return g (x_high - x_low) of the probe images at x: (images, directions).

    g: the gradient of the negative margin, by default the declared one. x_high and x_low are
    x + h u and x - h u in the box, for each random direction u.
    """
    target = frozen_target(context, context.probe_rows, backward)
    gradient, _, _ = target.gradient(x, context.probe_y, negative_margin)
    changes = [(gradient * (high - low)).flatten(1) for high, low in _sides(context, x)]
    return torch.stack([change.double().sum(1) for change in changes], 1)


def measured_changes(context: Context, x: Tensor) -> Tensor:
    """Return f(x_high) - f(x_low) for the same directions on the same draw: (images, directions).

    f is the negative margin.
    """
    target, y = frozen_target(context, context.probe_rows), context.probe_y
    changes = []
    for high, low in _sides(context, x):
        loss_high = negative_margin(target.logits(high), y)
        changes.append((loss_high - negative_margin(target.logits(low), y)).double())
    return torch.stack(changes, 1)


def _sides(context: Context, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield x + h u and x - h u in the box for each direction u."""
    h = WIDTH * context.eps
    noise = context.noise.take(context.probe_rows).fork("directions")
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
