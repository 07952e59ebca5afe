"""Cutting images into a grid of equal pieces, and putting them together again."""

from __future__ import annotations

from torch import Tensor


def split_image(x: Tensor, grid: int) -> Tensor:
    """Return the pieces (b grid^2, c, h / grid, w / grid) of images x (b, c, h, w).

    The pieces of the first image come first, row by row, then those of the next image.
    """
    b, c, h, w = x.shape
    height, width = h // grid, w // grid
    cut = x.reshape(b, c, grid, height, grid, width)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, height, width)


def join_pieces(pieces: Tensor, grid: int) -> Tensor:
    """Return the images (b, c, h, w) whose pieces `split_image` returned."""
    _, c, height, width = pieces.shape
    rows = pieces.reshape(-1, grid, grid, c, height, width)
    return rows.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, grid * height, grid * width)
