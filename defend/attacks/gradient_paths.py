"""The ways in which an attacker can differentiate a pipeline, and an ascent over averages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defend.attacks.apgd_ascent import Ascent, AscentStates, start_at_eps
from defend.gradients import AUTOGRAD_ROUTES, Relaxed, identity
from defend.losses import negative_margin
from defend.noise import Noise
from defend.norms import project, random_start
from defend.search_moves import AUTOGRAD, AUTOGRAD_PAST, DECLARED, IDENTITY
from defend.target import Target
from defend.threat_models import TEMPERATURES, relaxed_gradient

PROBED = 8  # images on which a gradient that nobody declared is tried
AUTOGRAD_NAMES = dict(zip((AUTOGRAD, AUTOGRAD_PAST), AUTOGRAD_ROUTES, strict=True))


def declared_paths(target: Target) -> dict[str, Target]:
    """Return the pipeline with each gradient that its purifier declares, by the gradient's name.

    The identity, which skips the purifier, is always among them. A target whose gradient was chosen
    by the caller keeps that one alone.
    """
    purifier = target.purifier
    paths = {DECLARED: target}
    if target.backward is not None:
        return paths
    if purifier.has_relaxation:
        for temperature in TEMPERATURES:
            paths[relaxed_gradient(temperature)] = target.through(Relaxed(temperature))
    if purifier.card.gradient != IDENTITY:
        paths[IDENTITY] = target.through(identity)
    return paths


def usable_paths(target: Target, x: Tensor, y: Tensor, eps: float, norm: str) -> dict[str, Target]:
    """Return the paths of `declared_paths`, and those of autograd that lead elsewhere.

    Plain autograd, which nobody declared, may raise anything, be zero, or be what is declared. It
    is left out only if that holds at all of a few images and of random points around them: a
    gradient may be zero at the clean images alone.
    """
    paths = declared_paths(target)
    if target.backward is not None:
        return paths
    rows = torch.linspace(0, len(x) - 1, min(PROBED, len(x)), device=x.device).long()
    x, y, probed = x[rows], y[rows], target.take(rows).fork("probe")
    points = (x, start_at_eps(x, eps, norm, probed.noise.fork("points")))
    known = [[_gradient(probed, point, y) for point in points]]
    for name, route in AUTOGRAD_NAMES.items():
        try:
            gradients = [_gradient(probed.through(route), point, y) for point in points]
        except Exception:  # `purify` may use anything that autograd refuses
            continue
        if _leads_elsewhere(gradients, known):
            paths[name] = target.through(route)
            known.append(gradients)
    return paths


def _gradient(probed: Target, x: Tensor, y: Tensor) -> Tensor:
    return probed.fork("gradient").gradient(x, y, negative_margin)[0]


def _leads_elsewhere(gradients: list[Tensor], known: list[list[Tensor]]) -> bool:
    """Return True if the gradients are not zero everywhere, nor those of a known path."""
    is_known = any(
        all(torch.allclose(mine, theirs) for mine, theirs in zip(gradients, others, strict=True))
        for others in known
    )
    return any(bool(gradient.nan_to_num().any()) for gradient in gradients) and not is_known


@dataclass(frozen=True, kw_only=True)
class AveragedAscent(Ascent):
    """Ascend along the mean of the gradients at the point and at random points near it.

    A gradient that is right on average, but rough or zero at single points, becomes useful
    (SmoothGrad, arXiv:1706.03825, of a loss).
    """

    points: int = 4  # random points beside the iterate itself
    radius: float = 0.25  # in eps: of the ball around the iterate

    def gradient(self, s: AscentStates, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean gradient (b, c, h, w); f (b,) and logits are those at s.x_adv."""
        copies = self.points + 1
        rows = torch.arange(len(s.x), device=s.x.device).repeat_interleave(copies)
        x_near = self._points_near(s, k).flatten(0, 1)
        results = s.target.take(rows).gradient(x_near, s.labels[rows], self.loss)
        gradient, loss, logits = (values.unflatten(0, (-1, copies)) for values in results)
        return gradient.mean(1), loss[:, 0], logits[:, 0]

    def _points_near(self, s: AscentStates, k: int) -> Tensor:
        """Return points (b, points + 1, c, h, w), of which the first of each image is the iterate.

        All lie in the box; some lie outside the eps ball, where they are asked for a slope alone.
        """
        noise = s.target.noise.fork(f"averages of step {k}").copies(self.points)
        centres = s.x_adv.repeat_interleave(self.points, 0)
        near = random_start(centres, self.radius * self.eps, self.norm, noise)
        return torch.cat([s.x_adv[:, None], near.unflatten(0, (-1, self.points))], 1)


def moved_within(x_adv: Tensor, x: Tensor, eps: float, norm: str, noise: Noise) -> Tensor:
    """Return random points at most eps / 4 from x_adv, in the eps ball around x and in the box."""
    moved = random_start(x_adv, eps / 4, norm, noise.fork("moved"))
    return project(moved, x, eps, norm)
