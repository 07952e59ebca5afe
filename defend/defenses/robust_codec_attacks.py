"""The attacks that a codec is trained against.

One makes its reconstruction wrong: Chen, Ma, arXiv:2112.08691, section III. The others make frozen
classifiers wrong that read the reconstruction: N-FGSM, de Jorge et al., arXiv:2202.01181, algorithm
1, and PGD, Madry et al., arXiv:1706.06083. Images x are (b, c, h, w) in [0, 1].

Symbols of arXiv:2112.08691: tau is `threshold`. A codec maps images to reconstructions and bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.noise import Noise
from defend.training.perturbations import Loss, climb, gradient_of

PGD_STEP = 1.5  # the length of one step of PGD in training, times eps / steps
Reconstruct = Callable[[Tensor], Tensor]  # images -> reconstructions


def attack_reconstruction(
    reconstruct: Reconstruct, x: Tensor, threshold: float, steps: int, noise: Noise
) -> Tensor:
    """Return x' within an MSE of `threshold` of x whose reconstruction is far from that of x.

    The paper descends MSE(x, x') wherever it exceeds the threshold; the steps here are projected
    onto the ball instead, which the few steps of a training use better.
    """
    radius = (threshold * x[0].numel()) ** 0.5
    with torch.no_grad():
        reference = reconstruct(x)
    return climb(lambda t: F.mse_loss(reconstruct(t), reference), x, radius, "L2", steps, noise)


def classify_loss(reconstruct: Reconstruct, classifiers: Iterable[nn.Module], y: Tensor) -> Loss:
    """Return the function of images whose value is the classifiers' mean cross-entropy."""

    def loss(x: Tensor) -> Tensor:
        restored = reconstruct(x)
        losses = [F.cross_entropy(net(restored).float(), y) for net in classifiers]
        return torch.stack(losses).mean()

    return loss


def attack_by_n_fgsm(loss: Loss, x: Tensor, eps: float, noise: Noise) -> Tensor:
    """Return x moved by noise of twice the eps and one step of eps, which is not projected."""
    x_adv = x + 2 * eps * (2 * noise.uniform(x) - 1)
    return x_adv + eps * gradient_of(loss, x_adv).sign()


def attack_by_steps(
    loss: Loss,
    x: Tensor,
    eps: float,
    steps: int,
    noise: Noise,
    factor: float = PGD_STEP,
) -> Tensor:
    """Return x after steps of PGD in the L-inf ball, each of factor * eps / steps."""
    return climb(loss, x, eps, "Linf", steps, noise, factor)
