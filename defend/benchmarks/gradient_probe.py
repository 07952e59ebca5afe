"""Count zero and undefined gradients of the attacked pipeline.

A gradient is looked at on the grid of 256 levels, where clean images lie, and off it, where
attacks climb. One of the two is the attack's own first step; the other costs one gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from defend.benchmarks.network_checks import blame_network_first
from defend.benchmarks.purifier_checks import (
    check_declared_deterministic,
    check_finite,
    check_gradient_mode,
    check_relaxation,
    few_of,
    is_quick,
    logits_agree,
    purify_once,
    spread_rows,
)
from defend.benchmarks.stopwatch import Stopwatch
from defend.losses import cross_entropy
from defend.noise import Noise
from defend.purifier import Backward, Relaxed
from defend.target import Loss, Target
from defend.tasks.classification import CLASSIFICATION


@dataclass(frozen=True)
class Unusable:
    """Images (b,) without a gradient that an attack could follow, at one point."""

    zero: Tensor
    undefined: Tensor  # some value is not finite

    @classmethod
    def of(cls, gradient: Tensor) -> Unusable:
        """Return which of the gradients (b, c, h, w) are zero, and which are not finite."""
        flat = gradient.flatten(1)
        return cls(zero=(flat == 0).all(1), undefined=~flat.isfinite().all(1))


@dataclass
class FirstGradient:
    """What the attack's first gradient of the task's loss of all images showed."""

    x: Tensor  # clean images
    unusable: Unusable | None = None  # None until the attack has asked
    is_on_grid: bool = False  # the attack began at the clean images themselves

    def record(self, x: Tensor, gradient: Tensor) -> None:
        """Keep the first gradient (b, c, h, w) at x, if it is of all images."""
        if self.unusable is None and len(x) == len(self.x):
            self.unusable = Unusable.of(gradient)
            self.is_on_grid = torch.equal(x, self.x)


@dataclass
class ObservedTarget(Target):
    """A target that records the first gradient that an attack asks for."""

    first_gradient: FirstGradient | None = field(default=None, repr=False)

    def gradient(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Return what Target.gradient returns."""
        gradient, losses, logits = super().gradient(x, y, loss)
        if self.first_gradient is not None and self._is_task_loss(loss):
            self.first_gradient.record(x, gradient)
        return gradient, losses, logits

    def _is_task_loss(self, loss: Loss) -> bool:
        """Return True for the loss of the task, which in classification is the cross entropy."""
        return loss == self.loss or (loss is cross_entropy and self.task is CLASSIFICATION)

    def through(self, backward: Backward | None) -> Target:
        """Return what Target.through returns; another gradient is not recorded."""
        return replace(self, backward=backward, first_gradient=None)

    def copies(self, n: int) -> Target:
        """Return what Target.copies returns; several restarts are not recorded."""
        copies = super().copies(n)
        if n > 1:
            copies = replace(copies, first_gradient=None)  # type: ignore[call-arg]
        return copies


@dataclass(frozen=True)
class GradientCounts:
    """Images whose gradient is zero, or not finite, on the grid or off it."""

    zero: int
    undefined: int


def separate_target(target: Target) -> Target:
    """Return the same pipeline with noise and counts of its own: the attack's stay as they are."""
    noise = target.noise.fork("flags")
    return _with_noise(target, noise)


def _with_noise(target: Target, noise: Noise) -> Target:
    """Return a target of the same pipeline and task with counts of its own."""
    return Target(
        target.classifier, target.purifier, noise, target.backward, target.eot, task=target.task
    )


def count_unusable(target: Target, first: FirstGradient, y: Tensor) -> GradientCounts:
    """Count the images whose gradient no attack could follow. y: labels (b,).

    At a task whose loss may be at its minimum for a clean image, the gradient there says nothing.
    """
    probe, x = separate_target(target), first.x
    offset = (probe.noise.fork("off the grid").uniform(x) - 0.5) / 255
    on_grid, off_grid = x, (x + offset).clamp(0, 1)
    observed: list[Unusable] = []
    points = [on_grid, off_grid]
    if target.task.clean_is_minimum:
        points = [off_grid]
    elif first.unusable is not None:
        observed.append(first.unusable)
        points = [off_grid] if first.is_on_grid else [on_grid]
    for point in points:
        gradient = probe.again().gradient(point, y, probe.loss)[0]
        observed.append(Unusable.of(gradient))
    zero = torch.stack([unusable.zero for unusable in observed]).any(0)
    undefined = torch.stack([unusable.undefined for unusable in observed]).any(0)
    return GradientCounts(zero=int(zero.sum()), undefined=int(undefined.sum()))


def check_attacked_pipeline(target: Target, x: Tensor, y: Tensor, needs_gradient: bool) -> None:
    """Raise BrokenPurifier, or Mismatch if it is the classifier, for logits of clean images that
    are not what the card says.

    They must be finite, equal on two draws where declared deterministic, and predictions must
    agree with and without gradients. Where nothing differs on a few images of a slow purifier, no
    others are asked. Through a relaxation, the purified images must agree, too.
    """
    probe = separate_target(target)
    if needs_gradient and isinstance(probe.backward, Relaxed):
        check_relaxation(target.purifier, x, probe.noise.fork("relaxation"), probe.backward)
    stopwatch = Stopwatch(x.device)
    agree = _few_agree(probe, x, y, needs_gradient, stopwatch)
    if not agree or is_quick(len(x), stopwatch.images_per_second):
        with blame_network_first(probe.classifier, lambda: _purify_first(probe, x)):
            _check_all_images(probe, x, y, needs_gradient)


def check_finite_logits(target: Target, x: Tensor, logits: Tensor) -> None:
    """Raise BrokenPurifier, or Mismatch if it is the classifier, for logits that are not finite.

    logits: (b, classes) of images x (b, c, h, w) behind the pipeline.
    """
    with blame_network_first(target.classifier, lambda: _purify_first(target, x)):
        check_finite(target.purifier, logits)


def _purify_first(target: Target, x: Tensor) -> Tensor:
    """Return the first draw of the purified images."""
    return purify_once(target.purifier, x, target.noise)


def _few_agree(
    probe: Target, x: Tensor, y: Tensor, needs_gradient: bool, stopwatch: Stopwatch
) -> bool:
    """Return True if a few images have finite logits, the same with and without gradients.

    Behind a deterministic purifier these are of two draws, so that one comparison says both. The
    images are spread over the range. stopwatch: measures the last evaluation.
    """
    rows = spread_rows(len(x), few_of(len(x))).to(x.device)
    noise = probe.noise.take(rows)
    few = _with_noise(probe, noise)
    x, y = x[rows], y[rows]
    first: Tensor | None = None
    if needs_gradient:
        first = few.gradient(x.clone(), y, few.loss)[2]
    elif few.deterministic:
        first = few.logits(x.clone())
    with stopwatch.measure(len(x)):
        is_mean = needs_gradient and not few.deterministic
        second = _mean_logits(few, x) if is_mean else few.logits(x.clone())
    agree = first is None or logits_agree(first, second)
    return agree and bool(second.isfinite().all())


def _mean_logits(target: Target, x: Tensor) -> Tensor:
    """Return mean logits over the first EOT draws, as a gradient has them, but without one."""
    replayed = target.again()
    draws = [replayed.logits(x.clone()) for _ in range(target.eot)]
    return torch.stack(draws).mean(0)


def _check_all_images(probe: Target, x: Tensor, y: Tensor, needs_gradient: bool) -> None:
    """Raise BrokenPurifier for the first reason; a few images may only round otherwise."""
    probe = probe.again()
    first, second = probe.logits(x.clone()), probe.logits(x.clone())
    check_finite(probe.purifier, first)
    check_declared_deterministic(probe.purifier, first, second)
    if not needs_gradient:
        return
    with_gradient = probe.again().gradient(x.clone(), y, probe.loss)[2]
    without = first if probe.deterministic else _mean_logits(probe, x)
    check_gradient_mode(probe.purifier, with_gradient, without, probe.task)
