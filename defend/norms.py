"""The eps balls and the box [0, 1]: what an attack may do, and the check that it did no more."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from defend.errors import BadParameter, BrokenAttack
from defend.noise import Noise

Norm = Literal["Linf", "L2"]
NORMS: tuple[Norm, ...] = ("Linf", "L2")


def norm_of(d: Tensor, norm: str) -> Tensor:
    """The norm of each image of d (b, ...): (b,)."""
    flat = d.flatten(1)
    if norm == "Linf":
        return flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(len(flat))
    if norm == "L2":
        length: Tensor = torch.linalg.vector_norm(flat, dim=1)
        return length
    raise BadParameter(f"norm {norm!r}: expected one of {', '.join(NORMS)}")


def _column(v: Tensor, like: Tensor) -> Tensor:
    return v.view(-1, *[1] * (like.ndim - 1))


def project(x_adv: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """Into the eps ball around x and into the box.

    For L-inf this is the nearest point of the intersection. For L2 the ball comes first and the box second: clipping towards
    a box that contains x brings every coordinate nearer to x, so the point stays in the ball.
    """
    if norm == "Linf":
        return torch.min(torch.max(x_adv, (x - eps).clamp(min=0)), (x + eps).clamp(max=1))
    d = x_adv - x
    # 1e-12: a difference of zero has no direction to shrink in
    return (x + d * _column((eps / norm_of(d, norm).clamp(min=1e-12)).clamp(max=1), d)).clamp(0, 1)


def steepest(g: Tensor, norm: str) -> Tensor:
    """The direction of norm 1 in which a function with gradient g rises fastest: sign(g), or g / |g|. Zero stays zero."""
    if norm == "Linf":
        return g.sign()
    return g / _column(norm_of(g, norm).clamp(min=1e-30), g)  # 1e-30: smaller than any gradient worth following


def random_start(x: Tensor, eps: float, norm: str, noise: Noise) -> Tensor:
    """Uniform in the ball and inside the box. L-inf: uniform in their intersection. L2: uniform in the ball, then clipped."""
    if norm == "Linf":
        low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
        return low + (high - low) * noise.uniform(x)
    direction = steepest(noise.normal(x), norm)
    radius = noise.uniform(x.flatten(1)[:, :1]).flatten() ** (1 / max(1, x[0].numel()))
    return (x + eps * _column(radius, x) * direction).clamp(0, 1)


def tolerance(eps: float, norm: str) -> float:
    """What float32 arithmetic is forgiven: 1e-6 for L-inf, 1e-5 max(1, eps) for L2."""
    return 1e-6 if norm == "Linf" else 1e-5 * max(1.0, eps)


def check_attacked(x_adv: Tensor, x: Tensor, eps: float, norm: str, name: str) -> None:
    """Raises BrokenAttack when x_adv has another shape or dtype, is not finite, leaves the box, or (in float64) the ball."""
    if (x_adv.shape, x_adv.dtype, x_adv.device) != (x.shape, x.dtype, x.device):
        raise BrokenAttack(f"{name}: returned {x_adv.dtype} {tuple(x_adv.shape)} for {x.dtype} {tuple(x.shape)}")
    if not x_adv.isfinite().all():
        raise BrokenAttack(f"{name}: returned images that are not finite")
    if x_adv.numel() and (x_adv.min() < 0 or x_adv.max() > 1):
        raise BrokenAttack(f"{name}: left the box [0, 1]: min {x_adv.min():.6g}, max {x_adv.max():.6g}")
    worst = norm_of(x_adv.double() - x.double(), norm).max().item() if len(x) else 0.0
    if worst > eps + tolerance(eps, norm):
        raise BrokenAttack(f"{name}: left the {norm} ball: eps {eps:.6g}, measured {worst:.6g}")
