"""No attack: what a null attack does, for comparison. Carlini et al., arXiv:1902.06705, section 4.9: random noise must do worse than an attack."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.noise import Noise
from defend.norms import project, signs, steepest
from defend.target import Target


class Control(Attack):
    """x' = clip(x + eps d),  d random signs, scaled to norm 1;  or kind=clean: x' = x. Asks the target nothing.

    The bench makes as many of them as there are candidates for the worst case of a stochastic defense, and treats them alike.
    """

    card = AttackCard(paper="arXiv:1902.06705", access="labels", norms=("Linf", "L2"))
    kind: Literal["signs", "clean"] = "signs"
    draw: int = 0  # which of the independent draws

    def validate(self) -> None:
        self.require(self.draw >= 0, "draw", ">= 0")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        if self.kind == "clean":
            return x.clone()
        d = signs(x, noise.fork(f"control {self.draw}"))
        return project(x + eps * steepest(d, self.norm), x, eps, self.norm)
