"""How the attacked pipeline's gradient looks: counted from what the attack itself computed.

An image whose first gradient in the attack is finite and not zero is usable. The others are
looked at again, on the grid of 256 levels and half a step off it, where attacks climb.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from defend.benchmarks.purifier_checks import (
    check_declared_deterministic,
    check_finite,
    check_gradient_mode,
)
from defend.losses import cross_entropy
from defend.target import Loss, Target


@dataclass
class FirstGradients:
    """Which images had a usable gradient at the attack's first step: bool (b,)."""

    images: int
    usable: Tensor | None = None  # None until the attack has asked for all images at once

    def record(self, gradient: Tensor) -> None:
        """Keep the first gradient (b, c, h, w) of all images."""
        if self.usable is None and len(gradient) == self.images:
            flat = gradient.flatten(1)
            self.usable = flat.isfinite().all(1) & (flat != 0).any(1)


@dataclass
class ObservedTarget(Target):
    """A target that records the first gradient that an attack asks for."""

    first_gradients: FirstGradients | None = field(default=None, repr=False)

    def gradient(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Return what Target.gradient returns."""
        gradient, losses, logits = super().gradient(x, y, loss)
        if self.first_gradients is not None:
            self.first_gradients.record(gradient)
        return gradient, losses, logits

    def copies(self, n: int) -> Target:
        """Return what Target.copies returns; restarts are not recorded."""
        return replace(super().copies(n), first_gradients=None)  # type: ignore[call-arg]


@dataclass(frozen=True)
class GradientCounts:
    """Images without a gradient that an attack could follow."""

    zero: int
    undefined: int


def separate_target(target: Target, rows: Tensor | None = None) -> Target:
    """Return the same pipeline with noise and counts of its own: the attack's stay as they are."""
    noise = target.noise.fork("flags")
    if rows is not None:
        noise = noise.take(rows)
    return Target(target.classifier, target.purifier, noise, target.backward, target.eot)


def count_unusable(target: Target, first: FirstGradients, x: Tensor, y: Tensor) -> GradientCounts:
    """Count images whose gradient is zero, or not finite, at every point that was looked at."""
    if first.usable is None:
        rows = torch.arange(len(x), device=x.device)
    else:
        rows = (~first.usable).nonzero().flatten()
    if not len(rows):
        return GradientCounts(zero=0, undefined=0)
    probe = separate_target(target, rows)
    off_grid = probe.noise.fork("off the grid").uniform(x[rows]) - 0.5
    points = (x[rows], (x[rows] + off_grid / 255).clamp(0, 1))
    gradients = [probe.again().gradient(point, y[rows], cross_entropy)[0] for point in points]
    flat = torch.stack([gradient.flatten(1) for gradient in gradients])
    zero = (flat == 0).all(2).any(0)
    undefined = ~flat.isfinite().all(2).all(0)
    return GradientCounts(zero=int(zero.sum()), undefined=int(undefined.sum()))


def check_attacked_pipeline(target: Target, x: Tensor, y: Tensor, needs_gradient: bool) -> None:
    """Raise BrokenPurifier if the attacked pipeline is not what its card says on clean images.

    Its logits are finite, deterministic where declared, and the same with a gradient.
    """
    probe = separate_target(target)
    draws = probe.again()
    first, second = draws.logits(x.clone()), draws.logits(x.clone())
    check_finite(target.purifier, first)
    check_declared_deterministic(target.purifier, first, second)
    if not needs_gradient:
        return
    with_gradient = probe.again().gradient(x, y, cross_entropy)[2]
    if probe.deterministic:
        without = first
    else:
        draws = probe.again()
        without = torch.stack([draws.logits(x.clone()) for _ in range(probe.eot)]).mean(0)
    check_gradient_mode(target.purifier, with_gradient, without)
