"""Fast Adaptive Boundary attack.

Source: Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
attack", arXiv:1907.02044.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.active_set import (
    ImageStates,
    is_readable_without_waiting,
    likeliest_wrong_classes,
    mean_margin,
    run_active,
    select_smallest_margin,
)
from defend.losses import targeted_margin, whole_labels
from defend.noise import Noise
from defend.norms import norm_of, per_image, project, random_start, steepest_direction
from defend.target import Target

# Section 3 and the published code.
ALPHA_MAX = 0.1  # the largest bias towards x
ETA = 1.05  # the overshoot beyond the plane
BETA = 0.9  # the share of the distance to x that remains after a backward step
NEWTON_STEPS = 12  # enough for the projection onto a plane, which takes 3 to 8


@dataclass
class BoundaryStates(ImageStates):
    """Hold the search of each image and target class.

    In Algorithm 1: x_adv = x(i), nearest = x_out.
    """

    results = ("nearest", "distance")
    x: Tensor
    labels: Tensor  # (b, 2): true class, target class
    x_adv: Tensor
    nearest: Tensor  # the nearest wrong point so far; the last point if none was wrong
    distance: Tensor  # (b,): from x to `nearest`; infinite if no point was wrong


class FAB(Attack):
    """Attack by the nearest wrong point: step to the linearised boundary, then back towards x.

    x(i+1) = clip((1 - a) (x(i) + 1.05 d1) + a (x + 1.05 d2)), and if that point is wrong, back to
    x + .9 (x(i+1) - x)  (Algorithm 1).

    d1 and d2 lead from x(i) and from x to the nearest point, inside the box, of the plane on which
    the target class draws level with the true class by the gradient at x(i);
    a = min(|d1| / (|d1| + |d2|), .1). The attack looks for the nearest wrong point, whatever eps.
    The target classes are the likeliest wrong ones at x, side by side. There is no random start.

    Where the target may drop images, a point within eps ends the search. Elsewhere the nearest
    wrong point proves nothing, since any blur cures it. So its direction is followed to the border
    of the ball (an image that is wrong from the start follows its gradient), and of the target
    classes the one of the smallest mean margin is returned.
    """

    card = AttackCard(paper="arXiv:1907.02044", access="gradient", norms=("Linf", "L2"))
    steps: int = 100
    targets: int = 9  # the number of target classes; fewer if there are fewer wrong classes

    def validate(self) -> None:
        self.require(self.steps >= 1, "steps", ">= 1")
        self.require(self.targets >= 1, "targets", ">= 1")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        y = whole_labels(y)
        classes = likeliest_wrong_classes(target, x, y, self.targets)
        copies = classes.shape[1]  # one copy of each image for each target class
        target, noise = target.copies(copies), noise.copies(copies)
        x_copies = x.repeat_interleave(copies, 0)
        y_copies = y.repeat_interleave(copies, 0)
        states = BoundaryStates(
            target=target,
            broken=torch.zeros_like(y_copies, dtype=torch.bool),
            x=x_copies,
            labels=torch.stack([y_copies, classes.flatten()], 1),
            x_adv=x_copies,
            nearest=x_copies,
            distance=x.new_full((len(x_copies),), torch.inf),
        )
        states = run_active(states, partial(self._step, eps=eps), range(self.steps), copies)
        end_points = self._end_points(states, eps, noise)
        return select_smallest_margin(target, end_points, y_copies, copies)

    def _step(self, s: BoundaryStates, k: int, eps: float) -> None:
        """Update the states in place by step k = 0, 1, ..."""
        gradient, difference, logits = s.target.gradient(s.x_adv, s.labels, targeted_margin)
        y = s.labels[:, 0]
        if k == 0:
            self._mark_wrong_from_the_start(s, logits.argmax(1) != y, gradient, eps)
        x_next = self._next_point(s, gradient, difference)
        is_wrong = mean_margin(s.target, x_next, y) < 0
        distance = norm_of(x_next - s.x, self.norm)
        is_nearer = is_wrong & (distance < s.distance) & ~s.is_final()
        is_replaced = is_nearer | s.distance.isinf()
        s.nearest = torch.where(per_image(is_replaced, s.x), x_next, s.nearest)
        s.distance = torch.where(is_nearer, distance, s.distance)
        backward = s.x + BETA * (x_next - s.x)
        s.x_adv = torch.where(per_image(is_wrong, s.x), backward, x_next)
        s.broken = s.distance <= eps

    def _mark_wrong_from_the_start(
        self, s: BoundaryStates, is_wrong: Tensor, gradient: Tensor, eps: float
    ) -> None:
        """Give images that are wrong at x the distance 0 and the direction of the gradient."""
        moved = s.x + eps * steepest_direction(gradient, self.norm)
        s.nearest = torch.where(per_image(is_wrong, s.x), moved, s.nearest)
        s.distance = torch.where(is_wrong, 0, s.distance)

    def _next_point(self, s: BoundaryStates, gradient: Tensor, difference: Tensor) -> Tensor:
        """Return x(i+1). difference: (b,), logit of the target class minus that of the true one."""
        rise_from_iterate = -difference
        rise_from_x = rise_from_iterate + _dot(gradient, s.x_adv - s.x)
        d1, d2 = project_onto_plane(
            torch.cat([s.x_adv, s.x]),
            gradient.repeat(2, 1, 1, 1),
            torch.cat([rise_from_iterate, rise_from_x]),
            self.norm,
        ).chunk(2)
        length1, length2 = norm_of(d1, self.norm), norm_of(d2, self.norm)
        share = (length1 / (length1 + length2).clamp(min=1e-8)).clamp(max=ALPHA_MAX)
        a = per_image(share, s.x)
        return ((1 - a) * (s.x_adv + ETA * d1) + a * (s.x + ETA * d2)).clamp(0, 1)

    def _end_points(self, s: BoundaryStates, eps: float, noise: Noise) -> Tensor:
        """Return a point inside the ball for each image and target class.

        It lies on the border in the direction of `nearest`, or at random if nothing ever moved.
        Where the target may drop images, a `nearest` within eps is returned as it is.
        """
        direction = s.nearest - s.x
        length = per_image(norm_of(direction, self.norm), s.x)
        scale = eps / length.clamp(min=torch.finfo(direction.dtype).tiny)
        border = project(s.x + direction * scale, s.x, eps, self.norm)
        border = torch.where(length > 0, border, random_start(s.x, eps, self.norm, noise))
        if not s.target.may_drop:
            return border
        inside = project(s.nearest, s.x, eps, self.norm)
        return torch.where(per_image(s.distance <= eps, s.x), inside, border)


def project_onto_plane(x: Tensor, w: Tensor, rise: Tensor, norm: str) -> Tensor:
    """Return the smallest d with w . d = rise and x + d in [0, 1]  (section 3.1).

    If no such d exists, return the d that goes as far towards the plane as the box allows.
    x, w, d: (b, c, h, w). rise: (b,).

    |d_i| = min(t v_i, room_i) in the direction that helps, with v = 1 (L-inf) or |w| (L2). The gain
    sum |w_i| |d_i| is concave and piecewise linear in t. So Newton's method approaches from the
    left, and is exact once no further pixel meets the box.
    """
    direction = w.sign() * per_image(rise.sign(), w)
    tiny = torch.finfo(x.dtype).tiny
    room = (direction.clamp(min=0) - x).abs().flatten(1)
    weight = w.abs().flatten(1)
    speed = torch.ones_like(weight) if norm == "Linf" else weight
    slope, ceiling = weight * speed, weight * room
    t_at_box = room / speed.clamp(min=tiny)  # the t at which a pixel meets the box
    t = torch.zeros_like(rise)[:, None]
    is_free = torch.empty_like(weight)  # 1 or 0, since bool masks take ten times as long on a CPU
    for _ in range(NEWTON_STEPS):
        torch.lt(t, t_at_box, out=is_free)
        missing = rise.abs() - torch.linalg.vecdot(1 - is_free, ceiling)
        gain = torch.linalg.vecdot(is_free, slope)
        t_before = t
        t = torch.where(gain > 0, missing / gain.clamp(min=tiny), t[:, 0])[:, None]
        if is_readable_without_waiting(t) and t.equal(t_before):
            break
    return direction * torch.minimum(t * speed, room).view_as(x)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each image of a and b: (b,)."""
    return (a * b).flatten(1).sum(1)
