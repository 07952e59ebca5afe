"""The attack on learned codecs: Chen, Ma, arXiv:2112.08691, section III.

Symbols: x the source, x' = clip(x + delta) the attacked image, R the codec, tau the noise
threshold, d the distortion.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from defend.ascent import ascend
from defend.attack import Attack, AttackCard
from defend.distortion import ms_ssim, mse
from defend.errors import Mismatch
from defend.noise import Noise
from defend.norms import per_image, project
from defend.target import Target

DECAY = 0.33  # of the learning rate, after each third of the steps
BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam: arXiv:1412.6980, algorithm 1


class CodecDistortion(Attack):
    """Move R(x') away from R(x), by Adam on delta, while the noise stays below a threshold.

    Each step descends MSE(x', x) where that exceeds tau, else 1 - d(R(x'), R(x)) with d the MSE,
    or the MS-SSIM of the two, |delta| <= eps throughout. Returned is the iterate of the largest
    distortion among those within tau, where the delta of the last one is scaled down to tau.

    Adam gets each image's gradient divided by its root mean square. Without that the moments of an
    objective with the larger gradients, as 1 - MS-SSIM has beside an MSE, outlast the turn to the
    other, and images stay above tau to the end.

    optimiser=sign is the I-FGSM form: x' <- clip(x' + a sign(g)), a = 2.5 eps / steps, bounded by
    eps alone; its last iterate is returned.
    """

    card = AttackCard(paper="arXiv:2112.08691", access="gradient", objective="distortion")
    metric: Literal["mse", "ms-ssim"] = "mse"
    optimiser: Literal["adam", "sign"] = "adam"
    steps: int = 1001
    lr: float = 0.01  # of Adam, in pixel values of [0, 1]
    threshold: float = 1e-4  # tau, an MSE: 40 dB
    # Half the width of the uniform delta at the start. The paper's own start, 0, is a minimum of
    # the distortion wherever the attacked codec is the deployed one, rounding included.
    start: float = 0.01

    def validate(self) -> None:
        self.require(self.steps >= 1, "steps", ">= 1")
        self.require(self.lr > 0, "lr", "> 0")
        self.require(self.threshold > 0, "threshold", "> 0, an MSE of pixels in [0, 1]")
        self.require(self.start >= 0, "start", ">= 0")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        if target.task.needs_classifier:
            raise Mismatch(
                "codec-distortion: expected the reconstruction of a codec, got the logits of a"
                " classifier; run it with --task reconstruction"
            )
        if eps == 0:
            return x.clone()
        x_adv = project(x + self.start * (2 * noise.uniform(x) - 1), x, eps, self.norm)
        reference = target.logits(x)  # R(x)
        if self.optimiser == "sign":
            return self._climb_by_signs(target, x, x_adv, reference, eps)
        return self._climb_by_adam(target, x, x_adv, reference, eps)

    def _distance(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return what is to grow: the MSE, or minus the MS-SSIM: (b,)."""
        return mse(output, reference) if self.metric == "mse" else -ms_ssim(output, reference)

    def _climb_by_signs(
        self, target: Target, x: Tensor, x_adv: Tensor, reference: Tensor, eps: float
    ) -> Tensor:
        for _ in range(self.steps):
            gradient = target.gradient(x_adv, reference, self._distance)[0]
            x_adv = ascend(x_adv, gradient, 2.5 * eps / self.steps, x, eps, self.norm)
        return x_adv

    def _climb_by_adam(
        self, target: Target, x: Tensor, x_adv: Tensor, reference: Tensor, eps: float
    ) -> Tensor:
        best, most = x_adv, x.new_full((len(x),), -torch.inf)
        first, second = torch.zeros_like(x), torch.zeros_like(x)  # moments of the gradient
        for k in range(self.steps):
            gradient, distance = self._descent(target, x, x_adv, reference)
            gradient = scale_to_unit(gradient)
            is_better = distance > most
            most = torch.where(is_better, distance, most)
            best = torch.where(per_image(is_better, x), x_adv, best)
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
            moments = first / (1 - BETAS[0] ** (k + 1)), second / (1 - BETAS[1] ** (k + 1))
            lr = self.lr * DECAY ** (3 * k // self.steps)
            moved = x_adv - lr * moments[0] / (moments[1].sqrt() + TINY)
            x_adv = project(moved, x, eps, self.norm)
        last = self._within_tau(x, x_adv)
        is_better = self._distance(target.logits(last), reference) > most
        return torch.where(per_image(is_better, x), last, best)

    def _within_tau(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Return the images with delta scaled down to an MSE of tau where it is larger."""
        scale = (self.threshold / mse(x_adv, x).clamp(min=self.threshold)).sqrt()
        return x + per_image(scale, x) * (x_adv - x)

    def _descent(
        self, target: Target, x: Tensor, x_adv: Tensor, reference: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of what is descended, and the distortion: (b,), -inf above tau.

        Images above tau are not sent through the codec.
        """
        is_within = mse(x_adv, x) <= self.threshold
        gradient = 2 * (x_adv - x) / x[0].numel()  # of MSE(x', x)
        distance = x.new_full((len(x),), -torch.inf)
        rows = is_within.nonzero()[:, 0]
        if len(rows):
            of_codec, distances, _ = target.take(rows).gradient(
                x_adv[rows], reference[rows], self._distance
            )
            gradient[rows], distance[rows] = -of_codec, distances
        return gradient, distance


def scale_to_unit(gradient: Tensor) -> Tensor:
    """Return each image's gradient divided by its root mean square; zeros stay zeros."""
    size = gradient.flatten(1).square().mean(1).sqrt()
    smallest = torch.finfo(gradient.dtype).tiny
    return gradient / per_image(size.clamp(min=smallest), gradient)
