"""How far a gradient is the slope of the scored loss: compared with finite differences.

The gradient and the differences are means over the same draws, as many as an attack averages over.
An attack takes its copies of an image side by side, and a score takes one at a time: so do the
gradient and the differences here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from defend.auditing.context import Context
from defend.auditing.spsa import WIDTH
from defend.auditing.thresholds import THRESHOLDS
from defend.gradients import Backward
from defend.losses import negative_margin
from defend.norms import random_signs
from defend.target import Target

DIRECTIONS = 20  # of finite differences, for each image
WIDTHS = (WIDTH, 1.0)  # h in units of eps: a step of an attack, and its whole way
SLOPE_IMAGES = 16  # of those that the declared attacks left correct, as far as there are so many
SMALLEST = 1e-300  # avoids 0 / 0


@dataclass(frozen=True)
class Slope:
    """The correlation of a gradient with finite differences, each image by itself."""

    mean: float  # over images
    share: float  # of the images that reach THRESHOLDS.image_slope

    @property
    def holds(self) -> bool:
        """Return True if a verdict may rest on the gradient."""
        is_slope = self.mean >= THRESHOLDS.ground.value
        return is_slope and self.share >= THRESHOLDS.image_share.value

    def lower(self, other: Slope) -> Slope:
        """Return what holds in both places."""
        return Slope(min(self.mean, other.mean), min(self.share, other.share))


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
    context: Context,
    x: Tensor,
    backward: Backward | None,
    rows: Tensor | None = None,
    width: float = WIDTH,
) -> Tensor:
    """Return g (x_high - x_low) of the images at x: (images, directions).

    g: the gradient of the negative margin, by default the declared one, averaged over the copies of
    an attack. x_high and x_low are x + h u and x - h u in the box, for each random direction u.
    rows: of these images, by default the probe images. width: h in units of eps.
    """
    rows = context.probe_rows if rows is None else rows
    target = frozen_target(context, rows, backward, context.budget.eot)
    gradient, _, _ = target.gradient(x, context.y[rows], negative_margin)
    changes = [
        (gradient * (high - low)).flatten(1) for high, low in _sides(context, x, rows, width)
    ]
    return torch.stack([change.double().sum(1) for change in changes], 1)


def measured_changes(
    context: Context, x: Tensor, rows: Tensor | None = None, width: float = WIDTH
) -> Tensor:
    """Return f(x_high) - f(x_low) for the same directions: (images, directions).

    f is the negative margin, averaged over the same draws, each of which is a call of its own.
    """
    rows = context.probe_rows if rows is None else rows
    high, low = (torch.cat(side) for side in zip(*_sides(context, x, rows, width), strict=True))
    changes = _mean_loss(context, high, rows) - _mean_loss(context, low, rows)
    return changes.view(DIRECTIONS, len(x)).T


def _mean_loss(context: Context, x: Tensor, rows: Tensor) -> Tensor:
    """Return the mean over draws for images x of all directions, whose rows repeat: (len(x),)."""
    all_rows = rows.repeat(len(x) // len(rows))
    total = torch.zeros(len(x), dtype=torch.double, device=x.device)
    for draw in range(context.budget.eot):
        target = frozen_target(context, all_rows)
        target.first_draw = draw
        total += negative_margin(target.logits(x), context.y[all_rows]).double()
    return total / context.budget.eot


def _sides(
    context: Context, x: Tensor, rows: Tensor, width: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield x + h u and x - h u in the box for each direction u."""
    h = width * context.eps
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


def correlate_each(declared: Tensor, measured: Tensor) -> Tensor:
    """Return the correlation of each image over its directions: (images,); 0 if there is none."""
    a = declared - declared.mean(1, keepdim=True)
    b = measured - measured.mean(1, keepdim=True)
    return cosine_similarity(a, b, dim=1, eps=SMALLEST).nan_to_num(nan=0.0)


def slope_of(declared: Tensor, measured: Tensor, is_standing: Tensor) -> Slope:
    """Return the slope over images: its mean over those that stand, if any do, and its share.

    is_standing: (images,), what no attack has broken. A mean over all images would pass a gradient
    that is right on those which break anyway.
    """
    correlations = correlate_each(declared, measured)
    standing = correlations[is_standing] if bool(is_standing.any()) else correlations
    is_right = correlations >= THRESHOLDS.image_slope.value
    return Slope(float(standing.mean()), float(is_right.double().mean()))
