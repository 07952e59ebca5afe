"""The fast gradient sign method: Goodfellow, Shlens, Szegedy, arXiv:1412.6572, section 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.losses import cross_entropy
from defend.noise import Noise
from defend.norms import project, steepest
from defend.target import Target


class FGSM(Attack):
    """x' = clip(x + eps sign(g)),  g the gradient of the cross entropy at x.  With norm=L2: x' = clip(x + eps g / |g|)."""

    card = AttackCard(paper="arXiv:1412.6572", access="gradient", norms=("Linf", "L2"))

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        return self._step(x, self._direction(target, x, y), eps)

    def sweep(
        self, target: Target, x: Tensor, y: Tensor, epsilons: Sequence[float], noise: Noise
    ) -> Iterator[Tensor]:
        """One gradient serves every eps; the counts still say what each would have cost alone."""
        target = target.again()
        direction = self._direction(target, x, y)
        alone = dict(target.counts)
        for eps in epsilons:
            target.counts.update(alone)
            yield self._step(x, direction, eps)

    def _direction(self, target: Target, x: Tensor, y: Tensor) -> Tensor:
        return steepest(target.gradient(x, y, cross_entropy)[0], self.norm)

    def _step(self, x: Tensor, direction: Tensor, eps: float) -> Tensor:
        return project(x + eps * direction, x, eps, self.norm)
