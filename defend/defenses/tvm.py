"""Total variation minimisation: Guo, Rana, Cisse, van der Maaten, "Countering Adversarial Images using Input Transformations",
arXiv:1711.00117, section 3.3, with the isotropic total variation of Rudin, Osher and Fatemi.

For each channel of each image, with a random mask m of kept pixels,

    z* = argmin_z F(z),   F(z) = 1/2 sum_ij m_ij (z_ij - x_ij)^2 + lambda sum_ij sqrt(|(Dz)_ij|^2 + beta^2),

where D are forward differences, zero across the border. beta rounds off the corner of |Dz| at zero. The paper's equation takes the root of the
first sum and of sums along whole rows, which ties far-away pixels to each other; here each pixel counts for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from defend.noise import Noise
from defend.purifier import Card, Purifier

BETA = 0.01  # in units of the [0, 1] pixel range: two to three of 255 grey levels
INNER = 5  # conjugate gradient steps for each linear problem
BLOCK = (
    2**16
)  # values that a CPU solves at once: the ten or so vectors of the solver stay in its cache, twice as fast as a thousand images at once

Operator = Callable[[Tensor], Tensor]


class TotalVariation(Purifier):
    """x' = z*, from pixels kept with probability ``keep``, by ``steps`` steps of lagged diffusivity (Vogel and Oman, 1996).

    Its gradient is the derivative of the minimiser z* by the implicit function theorem, dz*/dx = H^-1 m with H the Hessian of F, solved by
    conjugate gradients: the memory that it takes does not grow with ``steps``, and pixels that were dropped get no gradient.
    With keep=1 nothing is random: this is denoising by total variation.
    """

    card = Card(paper="arXiv:1711.00117", gradient="approximate", stochastic=True)
    weight: float = 0.03  # the paper's lambda
    keep: float = 0.5  # the share of pixels that the reconstruction sees, each channel by itself
    steps: int = 10  # each solves one linear problem

    def validate(self) -> None:
        self.require(self.weight > 0, "weight", "> 0")
        self.require(0 < self.keep <= 1, "keep", "> 0 and <= 1")
        self.require(self.steps >= 1, "steps", ">= 1")
        if self.keep == 1:
            object.__setattr__(self, "card", replace(self.card, stochastic=False))

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        mask = (noise.uniform(x) < self.keep).to(x.dtype)
        z: Tensor = _Minimiser.apply(x, mask, self.weight, self.steps)  # type: ignore[no-untyped-call]
        return z.clamp(0, 1)


def objective(z: Tensor, x: Tensor, mask: Tensor, weight: float) -> Tensor:
    """F for each image: (b,)."""
    return (0.5 * mask * (z - x).square() + weight * steepness(*differences(z))).flatten(1).sum(1)


def minimise(x: Tensor, mask: Tensor, weight: float, steps: int) -> Tensor:
    """z (b, c, h, w) after `steps` steps. F never rises: each step lowers a parabola that touches F from above."""
    z = first_guess(x, mask)
    for _ in range(steps):
        diffusivity = weight / steepness(*differences(z))

        def normal(v: Tensor, d: Tensor = diffusivity) -> Tensor:
            down, right = differences(v)
            return mask * v + adjoint(d * down, d * right)

        z = conjugate_gradients(normal, mask * x, z, mask + self_weights(diffusivity), INNER)
    return z


def first_guess(x: Tensor, mask: Tensor) -> Tensor:
    """Kept pixels, and for the others the mean of those kept in 5 x 5 around, else in the channel. Dropped values leak nowhere."""
    kept = mask * x
    mean = kept.sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True).clamp(min=1)
    near, many = (F.avg_pool2d(t, 5, stride=1, padding=2) for t in (kept, mask))
    return kept + (1 - mask) * (near + 1e-4 * mean) / (
        many + 1e-4
    )  # 1e-4: far less than one pixel of 25


def differences(z: Tensor) -> tuple[Tensor, Tensor]:
    """Dz: to the next pixel below and to the right, zero in the last row and column; each (b, c, h, w)."""
    return F.pad(z.diff(dim=2), (0, 0, 0, 1)), F.pad(z.diff(dim=3), (0, 1, 0, 0))


def adjoint(down: Tensor, right: Tensor) -> Tensor:
    """D^T p, for p that is zero where Dz is."""
    return (
        F.pad(down[:, :, :-1], (0, 0, 1, 0))
        - down
        + F.pad(right[:, :, :, :-1], (1, 0, 0, 0))
        - right
    )


def steepness(down: Tensor, right: Tensor) -> Tensor:
    return (down.square() + right.square() + BETA**2).sqrt()


def self_weights(d: Tensor) -> Tensor:
    """The diagonal of D^T d D."""
    down, right = F.pad(d[:, :, :-1], (0, 0, 0, 1)), F.pad(d[:, :, :, :-1], (0, 1, 0, 0))
    return (
        F.pad(down[:, :, :-1], (0, 0, 1, 0))
        + down
        + F.pad(right[:, :, :, :-1], (1, 0, 0, 0))
        + right
    )


def conjugate_gradients(
    apply: Operator, b: Tensor, z: Tensor, diagonal: Tensor, steps: int
) -> Tensor:
    """`apply`(z) = b from z, for each image by itself, preconditioned by the diagonal."""
    r = b - apply(z)
    direction = r / diagonal
    size = dot(r, direction)
    for _ in range(steps):
        pushed = apply(direction)
        length = size / dot(direction, pushed).clamp(
            min=1e-30
        )  # 1e-30: solved to the last digit, nothing left to divide
        z, r = z + length * direction, r - length * pushed
        before, size = size, dot(r, r / diagonal)
        direction = r / diagonal + size / before.clamp(min=1e-30) * direction
    return z


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2, 3), keepdim=True)


def hessian(z: Tensor, mask: Tensor, weight: float) -> tuple[Operator, Tensor]:
    """Of F at z, as a product with v, and the diagonal of its part without curvature of the unit gradient."""
    down, right = differences(z)
    s = steepness(down, right)
    down, right, d = down / s, right / s, weight / s

    def product(v: Tensor) -> Tensor:
        v_down, v_right = differences(v)
        along = down * v_down + right * v_right
        return mask * v + adjoint(d * (v_down - along * down), d * (v_right - along * right))

    return product, mask + self_weights(d)


def implicit(z: Tensor, mask: Tensor, grad: Tensor, weight: float, steps: int) -> Tensor:
    """H^-1 grad."""
    product, diagonal = hessian(z, mask, weight)
    return conjugate_gradients(product, grad, grad / diagonal, diagonal, steps)


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few images of each: every image is solved by itself, however many there are."""
    first = tensors[0]
    images = (
        max(1, BLOCK // first[0].numel())
        if first.device.type == "cpu" and len(first)
        else max(1, len(first))
    )
    return zip(*(t.split(images) for t in tensors), strict=True)


class _Minimiser(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, weight: float, steps: int) -> Tensor:
        z = torch.cat([minimise(some, m, weight, steps) for some, m in blocks(x, mask)])
        ctx.weight, ctx.steps = weight, steps
        ctx.save_for_backward(z, mask)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        z, mask = ctx.saved_tensors
        pushed = [
            implicit(at, m, g, ctx.weight, INNER * ctx.steps) for at, m, g in blocks(z, mask, grad)
        ]
        return mask * torch.cat(pushed), None, None, None
