"""Total variation minimisation: Guo, Rana, Cisse, van der Maaten, arXiv:1711.00117, section 3.3.

The paper is "Countering Adversarial Images using Input Transformations"; the total variation is the
isotropic one of Rudin, Osher and Fatemi. For each channel of each image, with a random mask m of
retained pixels,

    z* = argmin_z F(z),
    F(z) = 1/2 sum_ij m_ij (z_ij - x_ij)^2 + lambda sum_ij sqrt(|(Dz)_ij|^2 + beta^2),

where D are forward differences, zero across the border. beta rounds off the corner of |Dz| at zero.
The paper's equation takes the root of the first sum and of sums along whole rows, which ties
distant pixels to each other; here each pixel counts for itself.

Symbols: x, z and m (``mask``) are (b, c, h, w); lambda is ``weight``; beta is BETA; Dz is the pair
(``down``, ``right``); the diffusivity is d = lambda / sqrt(|Dz|^2 + beta^2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from defend.defenses.differences import (
    Operator,
    diagonal_of_laplacian,
    differences,
    preconditioned_conjugate_gradients,
    transposed_differences,
)
from defend.noise import Noise
from defend.purifier import Card, Purifier

BETA = 0.01  # in units of the [0, 1] pixel range: two to three of 255 grey levels
INNER = 5  # conjugate gradient steps for each linear problem

# Values that a CPU solves together. The ten or so vectors of the solver then stay in its cache,
# which is twice as fast as a thousand images together.
BLOCK = 2**16


class TotalVariation(Purifier):
    """Compute x' = z* from a random ``keep`` of the pixels.

    The minimiser is ``steps`` steps of lagged diffusivity (Vogel and Oman, 1996). Its gradient is
    the derivative by the implicit function theorem, dz*/dx = H^-1 m with H the Hessian of F, solved
    by conjugate gradients: its memory does not grow with ``steps``, and dropped pixels get no
    gradient. With keep=1 nothing is random: this is denoising by total variation.
    """

    card = Card(paper="arXiv:1711.00117", gradient="approximate", stochastic=True)
    weight: float = 0.03  # the paper's lambda
    keep: float = 0.5  # probability that a pixel is retained, for each channel by itself
    steps: int = 10  # each step solves one linear problem

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range.

        With keep=1 nothing is dropped at random, so the card of this instance says deterministic.
        """
        self.require(self.weight > 0, "weight", "> 0")
        self.require(0 < self.keep <= 1, "keep", "> 0 and <= 1")
        self.require(self.steps >= 1, "steps", ">= 1")
        if self.keep == 1:
            self.card = replace(self.card, stochastic=False)  # type: ignore[misc]

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the minimiser for x (b, c, h, w), clipped to [0, 1]."""
        mask = (noise.uniform(x) < self.keep).to(x.dtype)
        minimise: Callable[..., Tensor] = _Minimiser.apply
        return minimise(x, mask, self.weight, self.steps).clamp(0, 1)


def objective(z: Tensor, x: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Return F(z) for each image: (b,)."""
    fidelity = 0.5 * mask * (z - x).square()
    return (fidelity + weight * gradient_norm(*differences(z))).flatten(1).sum(1)


def gradient_norm(down: Tensor, right: Tensor) -> Tensor:
    """Return sqrt(|Dz|^2 + beta^2) from Dz."""
    return (down.square() + right.square() + BETA**2).sqrt()


def minimise(x: Tensor, mask: Tensor, weight: float, steps: int) -> Tensor:
    """Return z after `steps` steps of lagged diffusivity.

    F never increases: each step lowers a parabola that touches F from above.
    """
    z = initial_image(x, mask)
    for _ in range(steps):
        diffusivity = weight / gradient_norm(*differences(z))
        diagonal = mask + diagonal_of_laplacian(diffusivity)
        z = preconditioned_conjugate_gradients(
            lagged_operator(mask, diffusivity), mask * x, z, diagonal, INNER
        )
    return z


def initial_image(x: Tensor, mask: Tensor) -> Tensor:
    """Return x where pixels are retained, and a local mean of retained pixels elsewhere.

    The mean is over 5 x 5 pixels, or over the channel if none of them is retained. Values of
    dropped pixels have no influence.
    """
    retained = mask * x
    mean = retained.sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True).clamp(min=1)
    local_sum = F.avg_pool2d(retained, 5, stride=1, padding=2)
    local_count = F.avg_pool2d(mask, 5, stride=1, padding=2)
    # One pixel has weight 1/25, so 1e-4 of the channel's mean matters only if none is retained.
    return retained + (1 - mask) * (local_sum + 1e-4 * mean) / (local_count + 1e-4)


def lagged_operator(mask: Tensor, diffusivity: Tensor) -> Operator:
    """Return v -> (m + D^T d D) v, the Hessian of the parabola."""

    def apply(v: Tensor) -> Tensor:
        down, right = differences(v)
        return mask * v + transposed_differences(diffusivity * down, diffusivity * right)

    return apply


def hessian(z: Tensor, mask: Tensor, weight: float) -> tuple[Operator, Tensor]:
    """Return v -> H v at z, and as a preconditioner the diagonal of m + D^T d D.

    H differs from m + D^T d D by the curvature of the unit gradient u = Dz / sqrt(|Dz|^2 + beta^2).
    """
    down, right = differences(z)
    norm = gradient_norm(down, right)
    u_down, u_right, d = down / norm, right / norm, weight / norm

    def apply(v: Tensor) -> Tensor:
        v_down, v_right = differences(v)
        along = u_down * v_down + u_right * v_right
        across_down, across_right = v_down - along * u_down, v_right - along * u_right
        return mask * v + transposed_differences(d * across_down, d * across_right)

    return apply, mask + diagonal_of_laplacian(d)


def solve_hessian(z: Tensor, mask: Tensor, grad: Tensor, weight: float, steps: int) -> Tensor:
    """Return H^-1 grad at z."""
    apply, diagonal = hessian(z, mask, weight)
    return preconditioned_conjugate_gradients(apply, grad, grad / diagonal, diagonal, steps)


def split_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching blocks of images of all tensors; every image is solved by itself."""
    first = tensors[0]
    images = max(1, len(first))
    if first.device.type == "cpu" and len(first):
        images = max(1, BLOCK // first[0].numel())
    return zip(*(t.split(images) for t in tensors), strict=True)


class _Minimiser(torch.autograd.Function):
    """Compute z* forwards, and m H^-1 grad backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, weight: float, steps: int) -> Tensor:
        """Return z (b, c, h, w)."""
        blocks = split_blocks(x, mask)
        z = torch.cat([minimise(images, masks, weight, steps) for images, masks in blocks])
        ctx.weight, ctx.steps = weight, steps
        ctx.save_for_backward(z, mask)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient for x, and None for the other arguments."""
        z, mask = ctx.saved_tensors
        steps = INNER * ctx.steps
        blocks = split_blocks(z, mask, grad)
        solutions = [solve_hessian(zs, ms, gs, ctx.weight, steps) for zs, ms, gs in blocks]
        return mask * torch.cat(solutions), None, None, None
