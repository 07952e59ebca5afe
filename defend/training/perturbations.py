"""Perturbations of training images.

Each function takes images x (b, c, h, w) in [0, 1] and returns perturbed images in [0, 1]; all
randomness comes from `noise`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.ascent import ascend
from defend.noise import Noise
from defend.norms import Norm, random_signs, random_start

Loss = Callable[[Tensor], Tensor]  # images -> a scalar
STEP_FACTOR = 2.5  # one PGD step has the length STEP_FACTOR * eps / steps


def add_random_signs(x: Tensor, eps: float | Tensor, noise: Noise) -> Tensor:
    """Return images moved by +eps or -eps in each value: a random corner of the L-inf ball.

    eps: one number, or one for each image (b, 1, 1, 1).
    """
    return (x + eps * random_signs(x, noise)).clamp(0, 1)


def add_gaussian(x: Tensor, sigma: float | Tensor, noise: Noise) -> Tensor:
    """Return images with Gaussian noise added.

    sigma: one number, or one for each image (b, 1, 1, 1).
    """
    return (x + sigma * noise.normal(x)).clamp(0, 1)


def attack_by_pgd(
    net: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, steps: int, noise: Noise
) -> Tensor:
    """Attack `net` by PGD: raise the cross-entropy by steps of 2.5 eps / steps from a random start.

    Madry, Makelov, Schmidt, Tsipras, Vladu, arXiv:1706.06083, section 2.1. net(x) is (b, classes),
    y is (b,). The network is attacked in eval mode, because the iterates must not move its running
    statistics.
    """
    with eval_mode(net):
        return climb(cross_entropy_of(net, y), x, eps, norm, steps, noise)


def climb(
    loss: Loss,
    x: Tensor,
    eps: float,
    norm: Norm,
    steps: int,
    noise: Noise,
    factor: float = STEP_FACTOR,
) -> Tensor:
    """Return x after steps of `factor` eps / steps that raise a loss, from a random start.

    loss: images -> a scalar. Each step is projected onto the ball and the box.
    """
    x_adv = random_start(x, eps, norm, noise)
    for _ in range(steps):
        x_adv = ascend(x_adv, gradient_of(loss, x_adv), factor * eps / steps, x, eps, norm)
    return x_adv


def gradient_of(loss: Loss, x: Tensor) -> Tensor:
    """Return the gradient (b, c, h, w) of a loss of images, even under a caller's no_grad."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        gradient: Tensor = torch.autograd.grad(loss(x), x)[0]
    return gradient


def cross_entropy_of(net: nn.Module, y: Tensor) -> Loss:
    """Return the loss that sums a network's cross-entropy over images with labels y (b,)."""
    return lambda x: F.cross_entropy(net(x).float(), y, reduction="sum")


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put a network into eval mode while the block runs; then each module has its mode again.

    `net.train()` would put frozen modules into training mode too.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
