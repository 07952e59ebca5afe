"""The fast gradient sign method: Goodfellow, Shlens, Szegedy, arXiv:1412.6572, section 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from defend.ascent import ascend
from defend.attack import Attack, AttackCard
from defend.noise import Noise
from defend.norms import leave_clean
from defend.target import Target


class FGSM(Attack):
    """Attack with a single gradient step: x' = clip(x + eps sign(g)).

    g is the gradient at x of the task's loss, in classification the cross entropy. With norm=L2:
    x' = clip(x + eps g / |g|). Where g is zero, the signs are random.
    """

    card = AttackCard(
        paper="arXiv:1412.6572", access="gradient", norms=("Linf", "L2"), objective="task"
    )

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        gradient = target.gradient(x, y, target.loss)[0]
        return self._step(x, gradient, eps, noise)

    def sweep(
        self, target: Target, x: Tensor, y: Tensor, epsilons: Sequence[float], noise: Noise
    ) -> Iterator[Tensor]:
        """Yield one x_adv for each eps, all from one gradient.

        After each, `target.counts` says what that eps would have cost alone.
        """
        target = target.again()
        gradient = target.gradient(x, y, target.loss)[0]
        counts_alone = dict(target.counts)
        for eps in epsilons:
            target.counts.update(counts_alone)
            yield self._step(x, gradient, eps, noise.again())

    def _step(self, x: Tensor, gradient: Tensor, eps: float, noise: Noise) -> Tensor:
        """Return x moved along the gradient, and along random signs where it is zero."""
        x_adv = ascend(x, gradient, eps, x, eps, self.norm)
        return leave_clean(x_adv, x, eps, self.norm, noise)
