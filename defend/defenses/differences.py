"""Finite differences of images, and a solver for the linear problems that they lead to.

Symbols: D are forward differences, down and to the right, zero across the border; d is a weight for
each pixel. All tensors are (b, c, h, w).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Operator = Callable[[Tensor], Tensor]  # a linear map of images

EPSILON = 1e-30  # keeps 0 / 0 away from a problem that is already solved exactly


def differences(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return Dz: to the next pixel below and to the next one on the right, zero at the border."""
    return F.pad(z.diff(dim=2), (0, 0, 0, 1)), F.pad(z.diff(dim=3), (0, 1, 0, 0))


def transposed_differences(down: Tensor, right: Tensor) -> Tensor:
    """Return D^T p for p = (down, right) that is zero where Dz is zero."""
    from_above = F.pad(down[:, :, :-1], (0, 0, 1, 0))
    from_the_side = F.pad(right[:, :, :, :-1], (1, 0, 0, 0))
    return from_above - down + from_the_side - right


def diagonal_of_laplacian(d: Tensor) -> Tensor:
    """Return the diagonal of D^T d D."""
    down, right = F.pad(d[:, :, :-1], (0, 0, 0, 1)), F.pad(d[:, :, :, :-1], (0, 1, 0, 0))
    from_above = F.pad(down[:, :, :-1], (0, 0, 1, 0))
    from_the_side = F.pad(right[:, :, :, :-1], (1, 0, 0, 0))
    return from_above + down + from_the_side + right


def preconditioned_conjugate_gradients(
    apply: Operator, right_hand_side: Tensor, z: Tensor, diagonal: Tensor, steps: int
) -> Tensor:
    """Return z after `steps` steps towards `apply`(z) = right_hand_side, for each image by itself.

    apply: a symmetric positive definite map of images. z: the initial guess. diagonal: that of the
    map, (b, c, h, w) with positive values; the preconditioner divides by it.
    """
    residual = right_hand_side - apply(z)
    direction = residual / diagonal
    residual_dot = dot(residual, direction)  # of the residual with its preconditioned self
    for _ in range(steps):
        applied = apply(direction)
        step_size = residual_dot / dot(direction, applied).clamp(min=EPSILON)
        z = z + step_size * direction
        residual = residual - step_size * applied
        preconditioned = residual / diagonal
        previous_dot = residual_dot
        residual_dot = dot(residual, preconditioned)
        ratio = residual_dot / previous_dot.clamp(min=EPSILON)
        direction = preconditioned + ratio * direction
    return z


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product for each image: (b, 1, 1, 1)."""
    return (a * b).sum((1, 2, 3), keepdim=True)
