"""One step of projected gradient ascent, which every gradient attack in this package repeats."""

from __future__ import annotations

from torch import Tensor

from defend.norms import per_image, project, steepest_direction


def ascend(
    x_adv: Tensor, gradient: Tensor, step: float | Tensor, x: Tensor, eps: float, norm: str
) -> Tensor:
    """Return x_adv moved by `step` along the steepest direction, projected onto ball and box.

    Source: Madry et al., arXiv:1706.06083, section 2.1. x_adv, gradient and x: (b, c, h, w), with x
    the clean images. step: the length of the move in the attack's norm, one number or one value for
    each image (b,). A gradient of zero leaves the image where it is.
    """
    if isinstance(step, Tensor):
        step = per_image(step, x)
    return project(x_adv + step * steepest_direction(gradient, norm), x, eps, norm)
