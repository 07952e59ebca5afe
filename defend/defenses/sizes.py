"""Images in another size: bicubic, or padded to a multiple."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Return pixels x (b, c, h, w) in [0, 1] at another size, bicubic with antialiasing."""
    if x.shape[2:] == (height, width):
        return x
    return resize_unclipped(x, height, width).clamp(0, 1)


def resize_unclipped(x: Tensor, height: int, width: int) -> Tensor:
    """Return values x (b, c, h, w) at another size, bicubic with antialiasing."""
    if x.shape[2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bicubic", antialias=True)


def split_padding(size: int, multiple: int) -> tuple[int, int]:
    """Return how many pixels before and behind `size` pixels make a multiple."""
    missing = -size % multiple
    return missing // 2, missing - missing // 2
