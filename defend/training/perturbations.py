"""Perturbations while training. Each takes images x (b, c, h, w) in [0, 1] and returns such images; randomness comes from `noise`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.noise import Noise
from defend.norms import Norm, project, random_start, signs, steepest


def random_signs(x: Tensor, eps: float | Tensor, noise: Noise) -> Tensor:
    """eps up or down in each value: a corner of the L-inf ball. eps: a number, or one for each image (b, 1, 1, 1)."""
    return (x + eps * signs(x, noise)).clamp(0, 1)


def gaussian(x: Tensor, sigma: float | Tensor, noise: Noise) -> Tensor:
    """sigma: a number, or one for each image (b, 1, 1, 1)."""
    return (x + sigma * noise.normal(x)).clamp(0, 1)


def pgd(
    net: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, steps: int, noise: Noise
) -> Tensor:
    """Madry, Makelov, Schmidt, Tsipras, Vladu, arXiv:1706.06083, section 2.1: steps of 2.5 eps / steps from a random start.

    Of the cross-entropy of net(x) (b, classes) and y (b,). The network is attacked in eval mode: iterates of the attack must not
    move its running statistics.
    """
    training = net.training
    net.eval()
    x_adv = random_start(x, eps, norm, noise)
    for _ in range(steps):
        x_adv.requires_grad_()
        slope = torch.autograd.grad(F.cross_entropy(net(x_adv).float(), y, reduction="sum"), x_adv)[
            0
        ]
        x_adv = project(x_adv.detach() + 2.5 * eps / steps * steepest(slope, norm), x, eps, norm)
    net.train(training)
    return x_adv.detach()
