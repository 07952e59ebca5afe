"""Fast Adaptive Boundary attack: Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", arXiv:1907.02044."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.active_set import (
    Rows,
    likeliest_wrong,
    looks_are_free,
    mean_margin,
    while_standing,
    worst,
)
from defend.losses import difference
from defend.noise import Noise
from defend.norms import norm_of, per_image, project, random_start, steepest
from defend.target import Target

ALPHA_MAX, ETA, BETA = (
    0.1,
    1.05,
    0.9,
)  # the bias towards x, the overshoot, the step back: section 3 and the published code


@dataclass
class Boundary(Rows):
    """One image and target class. Names of Algorithm 1: adv = x(i), found = x_out."""

    results = ("found", "distance")
    x: Tensor
    labels: Tensor  # (b, 2): true class, target class
    adv: Tensor
    found: Tensor  # the nearest wrong point so far; where none is, the last point
    distance: Tensor  # (b,): of found, infinite where none is


class FAB(Attack):
    """x(i+1) = clip((1 - a) (x(i) + 1.05 d1) + a (x + 1.05 d2)),  back to x + .9 (x(i+1) - x) where it is wrong  (Algorithm 1).

    d1, d2: from x(i) and from x to the nearest point, inside the box, of the plane on which the target class draws level with the true
    one by the gradient at x(i); a = min(|d1| / (|d1| + |d2|), .1). It looks for the nearest wrong point, whatever eps; the target
    classes, the likeliest wrong ones at x, side by side. There is no random start.

    Where the target may drop images, a point found within eps ends the search. Everywhere else the nearest wrong point is no answer,
    since any blur cures it: its direction is followed to the border of the ball (an image that is wrong as it is follows its
    gradient), and of the target classes the one of the smallest mean margin is returned.
    """

    card = AttackCard(paper="arXiv:1907.02044", access="gradient", norms=("Linf", "L2"))
    steps: int = 100
    targets: int = 9  # fewer, where there are fewer wrong classes

    def validate(self) -> None:
        self.require(self.steps >= 1, "steps", ">= 1")
        self.require(self.targets >= 1, "targets", ">= 1")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        classes = likeliest_wrong(target, x, y, self.targets)
        n = classes.shape[1]
        target, noise, x, y = (
            target.copies(n),
            noise.copies(n),
            x.repeat_interleave(n, 0),
            y.repeat_interleave(n, 0),
        )
        labels = torch.stack([y, classes.flatten()], 1)
        s = Boundary(
            target,
            torch.zeros_like(y, dtype=torch.bool),
            x,
            labels,
            x,
            x,
            torch.full_like(x[:, 0, 0, 0], torch.inf),
        )
        s = while_standing(s, partial(self._step, eps=eps), range(self.steps), n)
        return worst(target, self._ends(s, eps, noise), y, n)

    def _step(self, s: Boundary, k: int, eps: float) -> None:
        g, f, logits = s.target.gradient(s.adv, s.labels, difference)
        y = s.labels[:, 0]
        if k == 0:
            asis = logits.argmax(1) != y
            s.found = torch.where(per_image(asis, s.x), s.x + eps * steepest(g, self.norm), s.found)
            s.distance = torch.where(asis, 0, s.distance)
        d1, d2 = to_plane(
            torch.cat([s.adv, s.x]),
            g.repeat(2, 1, 1, 1),
            torch.cat([-f, -f + _dot(g, s.adv - s.x)]),
            self.norm,
        ).chunk(2)
        a1, a2 = norm_of(d1, self.norm), norm_of(d2, self.norm)
        a = per_image((a1 / (a1 + a2).clamp(min=1e-8)).clamp(max=ALPHA_MAX), s.x)
        adv = ((1 - a) * (s.adv + ETA * d1) + a * (s.x + ETA * d2)).clamp(0, 1)
        wrong, distance = mean_margin(s.target, adv, y) < 0, norm_of(adv - s.x, self.norm)
        nearer = wrong & (distance < s.distance) & ~s.left_alone()
        s.found = torch.where(per_image(nearer | s.distance.isinf(), adv), adv, s.found)
        s.distance = torch.where(nearer, distance, s.distance)
        s.adv = torch.where(per_image(wrong, adv), s.x + BETA * (adv - s.x), adv)
        s.fallen = s.distance <= eps

    def _ends(self, s: Boundary, eps: float, noise: Noise) -> Tensor:
        """Inside the ball. Where nothing moved at all: a random point."""
        d = s.found - s.x
        length = per_image(norm_of(d, self.norm), d)
        border = project(
            s.x + d * (eps / length.clamp(min=torch.finfo(d.dtype).tiny)), s.x, eps, self.norm
        )
        border = torch.where(length > 0, border, random_start(s.x, eps, self.norm, noise))
        return (
            torch.where(
                per_image(s.distance <= eps, d), project(s.found, s.x, eps, self.norm), border
            )
            if s.target.may_drop
            else border
        )


def to_plane(x: Tensor, w: Tensor, rise: Tensor, norm: str) -> Tensor:
    """The smallest d with w . d = rise and x + d in [0, 1] (section 3.1); where no such d is, all that the box allows towards it.

    |d_i| = min(t v_i, room_i) in the direction that helps, v = 1 (L-inf) or |w| (L2); what that gains, sum |w_i| |d_i|, is concave and
    piecewise linear in t. So Newton's method comes from the left, and is exact once no pixel newly meets the box: 3 to 8 steps.
    """
    towards, tiny = w.sign() * per_image(rise.sign(), w), torch.finfo(x.dtype).tiny
    room = (towards.clamp(min=0) - x).abs().flatten(1)
    gain = w.abs().flatten(1)
    speed = torch.ones_like(gain) if norm == "Linf" else gain
    slope, ceiling, meets = (
        gain * speed,
        gain * room,
        room / speed.clamp(min=tiny),
    )  # a pixel meets the box at t = meets
    t, free = (
        torch.zeros_like(rise)[:, None],
        torch.empty_like(gain),
    )  # free: 1 or 0. On a CPU, bool masks take ten times as long
    for _ in range(12):
        torch.lt(t, meets, out=free)
        rest, steep = (
            rise.abs() - torch.linalg.vecdot(1 - free, ceiling),
            torch.linalg.vecdot(free, slope),
        )
        was, t = t, torch.where(steep > 0, rest / steep.clamp(min=tiny), t[:, 0])[:, None]
        if looks_are_free(t) and t.equal(was):
            break
    return towards * torch.minimum(t * speed, room).view_as(x)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
