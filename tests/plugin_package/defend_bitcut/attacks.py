"""Attacks of a third party: one that keeps its contract, and three that break it."""

import torch.nn.functional as F
from torch import Tensor

from defend import Attack, AttackCard, Noise, Target
from defend.norms import project, steepest_direction


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


class FGM(Attack):
    """x' = clip(x + eps g / |g|), one step along the gradient: Goodfellow, Shlens, Szegedy,
    arXiv:1412.6572, section 4.
    """

    card = AttackCard(paper="arXiv:1412.6572", access="gradient", norms=("L2",))

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        g, _, _ = target.gradient(x, y, cross_entropy)
        return project(x + eps * steepest_direction(g, self.norm), x, eps, self.norm)


class LeavesTheBall(Attack):
    """Broken: it goes three times as far as its budget allows."""

    card = AttackCard(paper="none: a broken example", access="gradient")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        g, _, _ = target.gradient(x, y, cross_entropy)
        return (x + 3 * eps * g.sign()).clamp(0, 1)


class Peeks(Attack):
    """Broken: its card says that scores are enough, but it takes gradients."""

    card = AttackCard(paper="none: a broken example", access="scores")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        g, _, _ = target.gradient(x, y, cross_entropy)
        return project(x + eps * g.sign(), x, eps, self.norm)


class Idles(Attack):
    """Broken: it returns the clean images."""

    card = AttackCard(paper="none: a broken example", access="gradient")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        return x.clone()
