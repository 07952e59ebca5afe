"""Large images as square tiles: cut, purified one by one, and put together, blended if asked."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def over_tiles(
    purify: Callable[[Tensor], Tensor], x: Tensor, size: int, overlap: int = 0
) -> Tensor:
    """Return x (b, c, h, w) purified in tiles of size x size pixels.

    purify: (b t, c, size, size) -> the same shape, with the t tiles of each image side by side.
    Images are continued by their border pixels to a whole number of tiles, and cropped afterwards.
    Where tiles overlap, their weights fall linearly from one to zero and add up to one, so that no
    seam is seen.
    """
    b, c, h, w = x.shape
    stride = size - overlap
    padded = F.pad(x, (0, _missing(w, size, stride), 0, _missing(h, size, stride)), "replicate")
    columns = F.unfold(padded, size, stride=stride)  # (b, c size^2, t)
    tiles = columns.transpose(1, 2).reshape(-1, c, size, size)
    window = _window(size, overlap, x)
    weighted = (purify(tiles) * window).reshape(b, -1, c * size * size).transpose(1, 2)
    shape = padded.shape[2:]
    total = F.fold(weighted, shape, size, stride=stride)
    weights = window.expand(1, 1, size, size).reshape(1, size * size, 1)
    weight = F.fold(weights.expand(1, -1, columns.shape[2]), shape, size, stride=stride)
    return (total / weight)[:, :, :h, :w]


def _missing(length: int, size: int, stride: int) -> int:
    """Return how many pixels are missing to a whole number of tiles, at least one."""
    return -(length - size) % stride if length > size else size - length


def _window(size: int, overlap: int, like: Tensor) -> Tensor:
    """Return the weights (size, size) of a tile: ramps over the overlap, one inside."""
    ramp = torch.ones(size, dtype=like.dtype, device=like.device)
    if overlap:
        rise = (torch.arange(overlap, dtype=like.dtype, device=like.device) + 0.5) / overlap
        ramp[:overlap], ramp[size - overlap :] = rise, rise.flip(0)
    return ramp[:, None] * ramp
