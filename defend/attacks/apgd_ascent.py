"""The ascent of Auto-PGD, which adapts its step size to each image.

Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", arXiv:2003.01690, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from defend.ascent import ascend
from defend.attacks.active_set import ImageStates, run_active
from defend.noise import Noise
from defend.norms import norm_of, per_image, project
from defend.target import Loss, Target

FIRST_CHECKPOINT = 22  # percent of the steps; section 3.1 of the paper


@dataclass
class AscentStates(ImageStates):
    """Hold the ascent of f for each image.

    In Algorithm 1: x_adv = x(k), previous = x(k-1), best = x_max, step_size = eta.
    """

    results = ("best",)
    x: Tensor
    y: Tensor
    labels: Tensor  # the labels that f takes: y, or (b, 2) of y and the target class
    x_adv: Tensor
    previous: Tensor
    gradient: Tensor  # of f at x_adv
    loss: Tensor  # (b,): f at x_adv
    best: Tensor  # if the target may drop images: of a broken image the iterate that broke it
    best_gradient: Tensor
    best_loss: Tensor
    step_size: Tensor  # (b,)
    rises: Tensor  # (b,): steps since the last checkpoint that raised f
    checkpoint_loss: Tensor  # (b,): best_loss at the last checkpoint
    was_halved: Tensor  # (b,): True if the step size was halved at the last checkpoint


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """Ascend f with momentum, and with a step size that is halved where f stops rising.

    z = P(x(k) + eta d(g)),  x(k+1) = P(x(k) + 3/4 (z - x(k)) + 1/4 (x(k) - x(k-1)))  (Algorithm 1).

    P projects onto ball and box together, d is the steepest direction of norm 1. At each
    checkpoint, an image for which too few steps have raised f, or whose best loss has not improved
    at the present eta, halves eta and goes on from x_max.
    """

    loss: Loss  # f
    norm: str
    eps: float
    steps: int
    rho: float = 0.75  # the share of steps that should raise f
    first_step: float = 2.0  # eta at first, in eps
    targeted: bool = False  # y are the classes that the images are to become

    def run(
        self, target: Target, x: Tensor, labels: Tensor, y: Tensor, x_adv: Tensor, copies: int = 1
    ) -> AscentStates:
        """Return the states after all steps, which begin at x_adv (b, c, h, w).

        labels: what f takes, a row for each image: y, or (b, 2) of y and the target class. copies:
        how many adjacent rows are of one image; they leave the batch together.
        """
        states = self._start(target, x, labels, y, x_adv)
        return run_active(states, self._step, range(self.steps), copies)

    def gradient(self, s: AscentStates, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the direction of the ascent (b, c, h, w), f (b,) and logits at s.x_adv.

        k: the number of the step, for ascents that draw.
        """
        return s.target.gradient(s.x_adv, s.labels, self.loss)

    def _is_reached(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return which images (b,) are wrong, or classified as their targets y."""
        return (logits.argmax(1) == y) == self.targeted

    def _start(
        self, target: Target, x: Tensor, labels: Tensor, y: Tensor, x_adv: Tensor
    ) -> AscentStates:
        """Return the states at the first iterate x_adv."""
        gradient, loss, logits = target.gradient(x_adv, labels, self.loss)
        return AscentStates(
            target=target,
            broken=self._is_reached(logits, y),
            x=x,
            y=y,
            labels=labels,
            x_adv=x_adv,
            previous=x_adv,
            gradient=gradient,
            loss=loss,
            best=x_adv,
            best_gradient=gradient,
            best_loss=loss,
            step_size=torch.full_like(loss, self.first_step * self.eps),
            rises=torch.zeros_like(y),
            checkpoint_loss=loss,
            was_halved=torch.zeros_like(y, dtype=torch.bool),
        )

    def _step(self, s: AscentStates, k: int) -> None:
        """Update the states in place by step k = 0, 1, ..."""
        moved = self._move(s, weight=0.75 if k else 1.0)
        s.x_adv, s.previous = moved, s.x_adv
        loss_before = s.loss
        s.gradient, s.loss, logits = self.gradient(s, k)
        s.rises = s.rises + (s.loss > loss_before)
        is_wrong = self._is_reached(logits, s.y)
        is_better = (s.loss > s.best_loss) | (is_wrong & s.target.may_drop)
        self._update_best(s, is_better & ~s.is_final())
        s.broken = s.broken | is_wrong
        interval = self._checkpoints.get(k + 1)
        if interval:
            self._adapt_step_size(s, interval)

    def _move(self, s: AscentStates, weight: float) -> Tensor:
        """Return x(k+1). weight: that of the step to z; the last move gets the rest."""
        z = ascend(s.x_adv, s.gradient, s.step_size, s.x, self.eps, self.norm)
        last_move = s.x_adv - s.previous
        mixed = s.x_adv + weight * (z - s.x_adv) + (1 - weight) * last_move
        return project(mixed, s.x, self.eps, self.norm)

    def _update_best(self, s: AscentStates, mask: Tensor) -> None:
        """Set the best iterate of the images in `mask` (b,) to the present one."""
        s.best = torch.where(per_image(mask, s.x), s.x_adv, s.best)
        s.best_gradient = torch.where(per_image(mask, s.x), s.gradient, s.best_gradient)
        s.best_loss = torch.where(mask, s.loss, s.best_loss)

    def _restart_from_best(self, s: AscentStates, mask: Tensor) -> None:
        """Set the present iterate of the images in `mask` (b,) to their best one."""
        s.x_adv = torch.where(per_image(mask, s.x), s.best, s.x_adv)
        s.gradient = torch.where(per_image(mask, s.x), s.best_gradient, s.gradient)
        s.loss = torch.where(mask, s.best_loss, s.loss)

    def _adapt_step_size(self, s: AscentStates, interval: int) -> None:
        """Halve the step size where condition 1 or 2 of section 3.1 holds.

        interval: the number of steps since the last checkpoint.
        """
        has_few_rises = s.rises < self.rho * interval
        has_no_gain = ~s.was_halved & (s.best_loss <= s.checkpoint_loss)
        is_halved = has_few_rises | has_no_gain
        s.step_size = torch.where(is_halved, s.step_size / 2, s.step_size)
        self._restart_from_best(s, is_halved)
        s.rises = torch.zeros_like(s.rises)
        s.checkpoint_loss, s.was_halved = s.best_loss, is_halved

    @cached_property
    def _checkpoints(self) -> dict[int, int]:
        return checkpoints(self.steps)


def checkpoints(steps: int) -> dict[int, int]:
    """Return the checkpoints w_j = ceil(p_j steps), with the number of steps since the last.

    p_0 = 0, p_1 = .22, p_(j+1) = p_j + max(p_j - p_(j-1) - .03, .06)  (section 3.1). p is held in
    percent, because .22 + .19 is not .41 in floating point.
    """
    intervals: dict[int, int] = {}
    last_checkpoint, previous, p = 0, 0, FIRST_CHECKPOINT
    while p <= 100:
        checkpoint = -(-p * steps // 100)  # rounded up
        if checkpoint > last_checkpoint:
            intervals[checkpoint] = checkpoint - last_checkpoint
            last_checkpoint = checkpoint
        previous, p = p, p + max(p - previous - 3, 6)
    return intervals


def start_at_eps(x: Tensor, eps: float, norm: str, noise: Noise) -> Tensor:
    """Return random points of norm eps around x, where the published code starts too."""
    direction = 2 * noise.uniform(x) - 1 if norm == "Linf" else noise.normal(x)
    length = per_image(norm_of(direction, norm), x)
    return (x + eps * direction / length).clamp(0, 1)
