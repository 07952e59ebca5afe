"""The ways in which an attacker can differentiate a pipeline, and an ascent over averages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defend.attacks.apgd_ascent import Ascent, AscentStates
from defend.chain import declares_autograd
from defend.gradients import PlainAutograd, Relaxed, identity
from defend.losses import cross_entropy
from defend.search_moves import AUTOGRAD, DECLARED, IDENTITY
from defend.target import Target
from defend.threat_models import TEMPERATURES, relaxed_gradient

PROBED = 8  # images on which a gradient that nobody declared is tried


def gradient_paths(target: Target) -> dict[str, Target]:
    """Return the pipeline with each gradient of its purifier, by the gradient's name.

    A target whose gradient was chosen by the caller keeps that one alone.
    """
    purifier = target.purifier
    if target.backward is not None:
        return {DECLARED: target}
    paths = {DECLARED: target}
    if purifier.has_relaxation:
        for temperature in TEMPERATURES:
            paths[relaxed_gradient(temperature)] = target.through(Relaxed(temperature))
    if purifier.card.gradient != IDENTITY:
        paths[IDENTITY] = target.through(identity)
    if not declares_autograd(purifier):
        paths[AUTOGRAD] = target.through(PlainAutograd())
    return paths


def usable_paths(target: Target, x: Tensor, y: Tensor) -> dict[str, Target]:
    """Return the paths of `gradient_paths` that can be followed at x, the declared one always.

    Plain autograd, which nobody declared, may raise anything, be zero, or be what is declared.
    """
    paths = gradient_paths(target)
    if AUTOGRAD in paths and not _leads_elsewhere(paths[AUTOGRAD], target, x, y):
        del paths[AUTOGRAD]
    return paths


def _leads_elsewhere(path: Target, declared: Target, x: Tensor, y: Tensor) -> bool:
    """Return True if the gradient of the path is not zero, nor the declared one, somewhere."""
    x, y = x[:PROBED], y[:PROBED]
    rows = torch.arange(len(x), device=x.device)
    try:
        gradient = path.take(rows).gradient(x, y, cross_entropy)[0]
    except Exception:  # `purify` may use anything that autograd refuses
        return False
    usual = declared.take(rows).through(None).gradient(x, y, cross_entropy)[0]
    return bool(gradient.any()) and not torch.equal(gradient, usual)


@dataclass(frozen=True, kw_only=True)
class AveragedAscent(Ascent):
    """Ascend along the mean of the gradients at the point and at random points near it.

    A gradient that is right on average, but rough or zero at single points, becomes useful
    (SmoothGrad, arXiv:1706.03825, of a loss).
    """

    points: int = 4  # random points beside the iterate itself
    radius: float = 0.25  # in eps: of the cube around the iterate

    def gradient(self, s: AscentStates, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean gradient (b, c, h, w); f (b,) and logits are those at s.x_adv."""
        copies = self.points + 1
        rows = torch.arange(len(s.x), device=s.x.device).repeat_interleave(copies)
        x_near = s.x_adv[rows] + self._offsets(s, k).flatten(0, 1)
        x_near = x_near.clamp(0, 1)
        results = s.target.take(rows).gradient(x_near, s.labels[rows], self.loss)
        gradient, loss, logits = (values.unflatten(0, (-1, copies)) for values in results)
        return gradient.mean(1), loss[:, 0], logits[:, 0]

    def _offsets(self, s: AscentStates, k: int) -> Tensor:
        """Return offsets (b, points + 1, c, h, w), of which the first of each image is zero."""
        like = s.x_adv[:, None].expand(-1, self.points, *s.x_adv.shape[1:])
        signed = 2 * s.target.noise.fork(f"averages of step {k}").uniform(like) - 1
        none = torch.zeros_like(s.x_adv)[:, None]
        return torch.cat([none, self.radius * self.eps * signed], 1)
