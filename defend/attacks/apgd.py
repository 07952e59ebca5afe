"""Auto-PGD: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", arXiv:2003.01690."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.active_set import Rows, likeliest_wrong, while_standing, worst
from defend.losses import CLASSES, cross_entropy, dlr, dlr_targeted
from defend.noise import Noise
from defend.norms import norm_of, per_image, project, steepest
from defend.target import Loss, Target

LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr, "dlr-targeted": dlr_targeted}


@dataclass
class Climb(Rows):
    """One image's ascent of f. Names of Algorithm 1: adv = x(k), before = x(k-1), best = x_max, step = eta."""

    results = ("best",)
    x: Tensor
    y: Tensor
    labels: Tensor  # what f takes: y, or (b, 2) of y and the target class
    adv: Tensor
    before: Tensor
    g: Tensor  # the gradient of f at adv
    f: Tensor  # (b,)
    best: Tensor  # where the target may drop images: of a fallen one the iterate at which it fell
    g_best: Tensor
    f_best: Tensor
    step: Tensor  # (b,)
    rises: Tensor  # (b,): steps since the last checkpoint that raised f
    f_then: Tensor  # (b,): f_best at the last checkpoint
    halved: Tensor  # (b,): was the step halved there?


class APGD(Attack):
    """z = P(x(k) + eta d(g)),  x(k+1) = P(x(k) + 3/4 (z - x(k)) + 1/4 (x(k) - x(k-1))),  eta = 2 eps at first  (Algorithm 1).

    P projects onto ball and box together, d is the steepest direction of norm 1. At the checkpoints eta is halved, and the ascent goes
    on from x_max, where too few steps have risen or nothing has come of the present eta: for each image by itself. Restarts, and the
    targets of loss=dlr-targeted, climb side by side.

    Returns x_max: of several restarts and targets the one of the smallest mean margin, measured afresh. Where the target may drop
    images, one that is wrong at an iterate is returned as that iterate.
    """

    card = AttackCard(paper="arXiv:2003.01690", access="gradient", norms=("Linf", "L2"))
    loss: Literal["ce", "dlr", "dlr-targeted"] = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = (
        9  # for loss=dlr-targeted: the likeliest wrong classes at x; fewer, where there are fewer
    )
    rho: float = 0.75  # the share of steps that should rise

    def validate(self) -> None:
        self.require(self.steps >= 1, "steps", ">= 1")
        self.require(self.restarts >= 1, "restarts", ">= 1")
        self.require(self.targets >= 1, "targets", ">= 1")
        self.require(0 <= self.rho <= 1, "rho", "0 to 1, a share of steps")

    def unsupported(self, stochastic: bool, classes: int) -> str:
        return (
            f"loss={self.loss} needs {CLASSES[self.loss]} classes, and there are {classes}"
            if classes < CLASSES[self.loss]
            else ""
        )

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        labels = self._labels(target, x, y)  # (b, n) or (b, n, 2)
        n = labels.shape[1]
        target, noise, x, y = (
            target.copies(n),
            noise.copies(n),
            x.repeat_interleave(n, 0),
            y.repeat_interleave(n, 0),
        )
        climb = self._begin(target, x, labels.flatten(0, 1), y, eps, noise)
        climb = while_standing(climb, partial(self._step, eps=eps), range(self.steps), n)
        return worst(target, climb.best, y, n)

    def _labels(self, target: Target, x: Tensor, y: Tensor) -> Tensor:
        if self.loss != "dlr-targeted":
            return y[:, None].expand(-1, self.restarts)
        classes = likeliest_wrong(target, x, y, self.targets).repeat(1, self.restarts)
        return torch.stack([y[:, None].expand_as(classes), classes], 2)

    def _begin(
        self, target: Target, x: Tensor, labels: Tensor, y: Tensor, eps: float, noise: Noise
    ) -> Climb:
        """From a random point of norm eps, as the published code does."""
        d = 2 * noise.uniform(x) - 1 if self.norm == "Linf" else noise.normal(x)
        adv = (x + eps * d / per_image(norm_of(d, self.norm), x)).clamp(0, 1)
        g, f, logits = target.gradient(adv, labels, LOSSES[self.loss])
        step, never = torch.full_like(f, 2 * eps), torch.zeros_like(y, dtype=torch.bool)
        return Climb(
            target,
            logits.argmax(1) != y,
            x,
            y,
            labels,
            adv,
            adv,
            g,
            f,
            adv,
            g,
            f,
            step,
            torch.zeros_like(y),
            f,
            never,
        )

    def _step(self, s: Climb, k: int, eps: float) -> None:
        s.adv, s.before = self._moved(s, eps, 0.75 if k else 1.0), s.adv
        f = s.f
        s.g, s.f, logits = s.target.gradient(s.adv, s.labels, LOSSES[self.loss])
        s.rises = s.rises + (s.f > f)
        wrong = logits.argmax(1) != s.y
        better = ((s.f > s.f_best) | (wrong & s.target.may_drop)) & ~s.left_alone()
        s.best, s.g_best, s.f_best = _where(better, (s.adv, s.g, s.f), (s.best, s.g_best, s.f_best))
        s.fallen = s.fallen | wrong
        if since := self.checkpoints.get(k + 1):
            self._check(s, since)

    def _moved(self, s: Climb, eps: float, a: float) -> Tensor:
        z = project(s.adv + per_image(s.step, s.x) * steepest(s.g, self.norm), s.x, eps, self.norm)
        return project(s.adv + a * (z - s.adv) + (1 - a) * (s.adv - s.before), s.x, eps, self.norm)

    def _check(self, s: Climb, since: int) -> None:
        """Conditions 1 and 2 of section 3.1."""
        halve = (s.rises < self.rho * since) | (~s.halved & (s.f_best <= s.f_then))
        s.step = torch.where(halve, s.step / 2, s.step)
        s.adv, s.g, s.f = _where(halve, (s.best, s.g_best, s.f_best), (s.adv, s.g, s.f))
        s.rises, s.f_then, s.halved = torch.zeros_like(s.rises), s.f_best, halve

    @property
    def checkpoints(self) -> dict[int, int]:
        """After which step -> how many steps since the last: w_j = ceil(p_j steps), p = 0, .22, then p' + max(p' - p'' - .03, .06)."""
        before, p, out, last = 0, 22, {}, 0  # in hundredths: .22 + .19 is not .41 in floating point
        while p <= 100:
            w = -(-p * self.steps // 100)
            if w > last:
                out[w], last = w - last, w
            before, p = p, p + max(p - before - 3, 6)
        return out


def _where(mask: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(per_image(mask, a), a, b) for a, b in zip(new, old, strict=True))
