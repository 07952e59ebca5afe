"""What a cell's flags are made of: how the attacked pipeline's gradient, loss and outputs look, before an attack and after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from defend.attack import Attack
from defend.benchmarks.purifier_checks import (
    check_declared_deterministic,
    check_finite,
    check_gradient_mode,
)
from defend.losses import cross_entropy
from defend.target import Target


class GradientProbe:
    """One pipeline on one range, on noise of its own: an attack's costs and draws stay as they are."""

    def __init__(self, target: Target, x: Tensor, y: Tensor, attack: Attack) -> None:
        self.x, self.y, self.target = (
            x,
            y,
            Target(
                target.classifier,
                target.purifier,
                target.noise.fork("flags"),
                target.backward,
                target.eot,
            ),
        )
        self.seen: dict[str, Any] = {}
        self.before = self._loss(x)
        self._check(x)
        if attack.card.access == "gradient":
            self.seen |= self._slopes()

    def _check(self, x: Tensor) -> None:
        target = self.target.again()
        first, second = target.logits(x.clone()), target.logits(x.clone())
        check_finite(target.purifier, first)
        check_declared_deterministic(target.purifier, first, second)

    def _slopes(self) -> dict[str, int]:
        """On the grid of 256 levels, and half a step off it, where attacks climb. The sign of NaN is 0: such a pixel just stands still."""
        off = (self.x + (self.target.noise.fork("off the grid").uniform(self.x) - 0.5) / 255).clamp(
            0, 1
        )
        found = [self.target.again().gradient(z, self.y, cross_entropy) for z in (self.x, off)]
        check_gradient_mode(self.target.purifier, found[0][2], self._answers())
        slopes = torch.stack([slope.flatten(1) for slope, _, _ in found])
        dead, wild = (slopes == 0).all(2).any(0), ~slopes.isfinite().all(2).all(0)
        return {"zero_gradients": int(dead.sum()), "undefined_gradients": int(wild.sum())}

    def _answers(self) -> Tensor:
        """Mean logits over the draws that a gradient takes, without one."""
        target = self.target.again()
        return torch.stack(
            [
                target.logits(self.x.clone())
                for _ in range(1 if target.deterministic else target.eot)
            ]
        ).mean(0)

    def _loss(self, x: Tensor) -> float:
        return float(cross_entropy(self.target.again().logits(x.clone()), self.y).double().sum())

    def flags(self, x_adv: Tensor) -> dict[str, Any]:
        same = int((x_adv == self.x).flatten(1).all(1).sum())
        return {
            **self.seen,
            "unchanged": same,
            "loss_before": self.before,
            "loss_after": self._loss(x_adv),
        }
