"""Auto-PGD, a gradient attack that adapts its step size to each image.

Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", arXiv:2003.01690.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.active_set import likeliest_wrong_classes, select_smallest_margin
from defend.attacks.apgd_ascent import Ascent, start_at_eps
from defend.losses import MIN_CLASSES, cross_entropy, dlr, dlr_targeted, whole_labels
from defend.noise import Noise
from defend.target import Loss, Target
from defend.tasks.targeted import TARGETED

LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr, "dlr-targeted": dlr_targeted}


class APGD(Attack):
    """Attack by gradient ascent with momentum, and a step size that is halved where f stops rising.

    The ascent is `apgd_ascent.Ascent` (Algorithm 1), from a random point of norm eps. Restarts, and
    the targets of loss=dlr-targeted, climb side by side.

    Returns x_max; of several restarts and targets, the one of the smallest mean margin, measured
    afresh. Where the target may drop images, an image that is wrong at an iterate is returned as
    that iterate.
    """

    card = AttackCard(paper="arXiv:2003.01690", access="gradient", norms=("Linf", "L2"))
    loss: Literal["ce", "dlr", "dlr-targeted"] = "ce"
    steps: int = 100
    restarts: int = 1
    # For loss=dlr-targeted: the number of target classes, the likeliest wrong ones at x. If there
    # are fewer wrong classes, all are targets.
    targets: int = 9
    rho: float = 0.75  # the share of steps that should raise f
    targeted: bool = False  # true, with loss=ce: y are the classes that the images are to become

    def validate(self) -> None:
        self.require(self.steps >= 1, "steps", ">= 1")
        self.require(self.restarts >= 1, "restarts", ">= 1")
        self.require(self.targets >= 1, "targets", ">= 1")
        self.require(0 <= self.rho <= 1, "rho", "0 to 1, a share of steps")

        self.require(
            not self.targeted or self.loss == "ce",
            "targeted",
            f"false with loss={self.loss}, which wants any wrong class; use loss=ce",
        )

    def unsupported(self, stochastic: bool, classes: int) -> str:
        needed = MIN_CLASSES[self.loss]
        if classes >= needed:
            return ""
        return f"loss={self.loss} needs {needed} classes, and there are {classes}"

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        y = whole_labels(y)
        target = target.toward_targets() if self.targeted else target
        labels = self._labels(target, x, y)
        n = labels.shape[1]
        target, noise = target.copies(n), noise.copies(n)
        x, y = x.repeat_interleave(n, 0), y.repeat_interleave(n, 0)
        x_adv = start_at_eps(x, eps, self.norm, noise)
        states = self._ascent(eps).run(target, x, labels.flatten(0, 1), y, x_adv, n)
        return select_smallest_margin(target, states.best, y, n, self.targeted)

    def _ascent(self, eps: float) -> Ascent:
        """Return the ascent of its loss, or of the loss of a targeted attack."""
        return Ascent(
            loss=TARGETED.loss if self.targeted else LOSSES[self.loss],
            norm=self.norm,
            eps=eps,
            steps=self.steps,
            rho=self.rho,
            targeted=self.targeted,
        )

    def _labels(self, target: Target, x: Tensor, y: Tensor) -> Tensor:
        """Return the labels of each image's n copies: (b, n), or (b, n, 2) with target classes."""
        if self.loss != "dlr-targeted":
            return y[:, None].expand(-1, self.restarts)
        classes = likeliest_wrong_classes(target, x, y, self.targets).repeat(1, self.restarts)
        return torch.stack([y[:, None].expand_as(classes), classes], 2)
