"""A null attack for comparison: random noise must do worse than an attack.

Source: Carlini et al., arXiv:1902.06705, section 4.9.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from defend.ascent import ascend
from defend.attack import Attack, AttackCard
from defend.noise import Noise
from defend.norms import random_signs
from defend.target import Target


class Control(Attack):
    """Move images at random: x' = clip(x + eps d), where d are random signs scaled to norm 1.

    With kind=clean: x' = x. The target is never queried. The bench runs as many controls as there
    are candidates for the worst case of a stochastic defense, and treats both in the same way.
    """

    card = AttackCard(
        paper="arXiv:1902.06705",
        access="labels",
        norms=("Linf", "L2"),
        objective="task",  # it climbs nothing, at any task
    )
    kind: Literal["signs", "clean"] = "signs"
    draw: int = 0  # the number of the independent draw

    def validate(self) -> None:
        self.require(self.draw >= 0, "draw", ">= 0")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        if self.kind == "clean":
            return x.clone()
        direction = random_signs(x, noise.fork(f"control {self.draw}"))
        return ascend(x, direction, eps, x, eps, self.norm)
