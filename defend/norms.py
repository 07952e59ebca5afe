"""The eps balls and the box [0, 1]: projections, directions and starts of attacks, and the check of
the budget.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from defend.errors import BadParameter, BrokenAttack
from defend.noise import Noise

Norm = Literal["Linf", "L2"]
NORMS: tuple[Norm, ...] = ("Linf", "L2")
NEWTON_STEPS = 12  # images need 2 to 5; the worst of wild draws in 3,072 dimensions needed 15


def norm_of(d: Tensor, norm: str) -> Tensor:
    """Return the norm of each image of d (b, ...): (b,). Raise BadParameter for an unknown norm."""
    flat = d.flatten(1)
    if norm == "Linf":
        return flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(len(flat))
    if norm == "L2":
        length: Tensor = torch.linalg.vector_norm(flat, dim=1)
        return length
    raise BadParameter(f"norm {norm!r}: expected one of {', '.join(NORMS)}")


def per_image(v: Tensor, like: Tensor) -> Tensor:
    """Reshape v (b,) so that it multiplies the images of `like` (b, c, h, w)."""
    return v.view(-1, *[1] * (like.ndim - 1))


def project(x_adv: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """Return the nearest point in the intersection of the eps ball around x and the box [0, 1], for
    x inside the box.

    For L2 the nearest point is x + clip(t (x_adv - x)) with the largest t <= 1 that stays in the
    ball. A projection on the ball first and on the box second would end inside the ball wherever
    the box is active, and an attack would never use its whole budget.
    """
    if norm == "Linf":
        return torch.min(torch.max(x_adv, (x - eps).clamp(min=0)), (x + eps).clamp(max=1))
    d = x_adv - x
    limit = torch.where(d > 0, 1 - x, x)  # the distance of each pixel from the box
    t = _largest_step(d.flatten(1), limit.flatten(1), eps)
    return (x + d * per_image(t, d)).clamp(0, 1)


def _largest_step(d: Tensor, limit: Tensor, eps: float) -> Tensor:
    """Return the largest t <= 1 with |min(t |d|, limit)| <= eps, for d and limit (b, n): (b,).

    Newton's method on t^2, in which the squared norm is concave and piecewise linear: an iterate
    that starts from the left never leaves the ball, and is exact once no further pixel meets the
    box.
    """
    slope = d.square()
    ceiling = limit.square()
    t2 = d.new_zeros(len(d), 1)
    for _ in range(NEWTON_STEPS):
        free = t2 * slope < ceiling
        budget = eps**2 - torch.where(free, 0, ceiling).sum(1, keepdim=True)
        free_slope = torch.where(free, slope, 0).sum(1, keepdim=True)
        solution = (budget.clamp(min=0) / free_slope).clamp(max=1)
        # Without a free pixel, all pixels are at the box and a larger t changes nothing.
        t2 = torch.where(free_slope > 0, solution, t2)
    return t2.sqrt().flatten()


def steepest_direction(g: Tensor, norm: str) -> Tensor:
    """Return the direction of norm 1 in which a function with gradient g rises fastest: sign(g), or
    g / |g|.

    A gradient of zero gives zero, and a value that is not a number counts as zero: it says nothing,
    and would take the other pixels with it.
    """
    g = g.nan_to_num()
    if norm == "Linf":
        return g.sign()
    tiny = torch.finfo(g.dtype).tiny
    # Scale to a maximum of 1 first: squares of gradients below 1e-19 underflow in float32.
    g = g / per_image(norm_of(g, "Linf").clamp(min=tiny), g)
    return g / per_image(norm_of(g, norm).clamp(min=tiny), g)


def random_start(x: Tensor, eps: float, norm: str, noise: Noise) -> Tensor:
    """Return a random point in the eps ball around x and in the box.

    L-inf: uniform in the intersection of both. L2: uniform in the ball, then clipped to the box.
    """
    if norm == "Linf":
        low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
        return low + (high - low) * noise.uniform(x)
    direction = steepest_direction(noise.normal(x), norm)
    flat = x.flatten(1)
    radius = noise.uniform(flat[:, :1]).flatten() ** (1 / max(1, flat.shape[1]))
    return (x + eps * per_image(radius, x) * direction).clamp(0, 1)


def random_signs(x: Tensor, noise: Noise) -> Tensor:
    """Return -1 or 1 for each value of x, with equal probability."""
    return (noise.uniform(x) < 0.5).to(x.dtype) * 2 - 1


def leave_clean(x_adv: Tensor, x: Tensor, eps: float, norm: str, noise: Noise) -> Tensor:
    """Return x_adv, with a point of random signs at eps in place of each image that is still x.

    A gradient of zero moves nothing. The clean image would then be scored as if it were attacked,
    before a pipeline that may be another one than the target.
    """
    is_clean = (x_adv == x).flatten(1).all(1)
    moved = project(x + random_signs(x, noise), x, eps, norm)
    return torch.where(per_image(is_clean, x), moved, x_adv)


def tolerance(eps: float, norm: str) -> float:
    """Return the excess over eps that float32 arithmetic may cause: 1e-6 for L-inf, 1e-5 max(1,
    eps) for L2.
    """
    return 1e-6 if norm == "Linf" else 1e-5 * max(1.0, eps)


def check_adversarial(x_adv: Tensor, x: Tensor, eps: float, norm: str, name: str) -> None:
    """Raise BrokenAttack if x_adv has another shape or dtype, is not finite, or leaves the box or
    the eps ball.

    The distance is computed in float64. name: the attack, for the message.
    """
    if (x_adv.shape, x_adv.dtype, x_adv.device) != (x.shape, x.dtype, x.device):
        raise BrokenAttack(
            f"{name}: expected images of {x.dtype} {tuple(x.shape)} on {x.device}, "
            f"got {x_adv.dtype} {tuple(x_adv.shape)} on {x_adv.device}"
        )
    if not x_adv.isfinite().all():
        raise BrokenAttack(f"{name}: expected finite images, got values that are not finite")
    if x_adv.numel() and (x_adv.min() < 0 or x_adv.max() > 1):
        raise BrokenAttack(
            f"{name}: left the box [0, 1]: min {x_adv.min():.6g}, max {x_adv.max():.6g}"
        )
    largest = norm_of(x_adv.double() - x.double(), norm).max().item() if len(x) else 0.0
    if largest > eps + tolerance(eps, norm):
        raise BrokenAttack(f"{name}: left the {norm} ball: eps {eps:.6g}, measured {largest:.6g}")
