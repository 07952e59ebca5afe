"""Images on which clipping, division and normalisation fail first."""

from __future__ import annotations

from torch import Tensor


def edge_images(like: Tensor) -> Tensor:
    """Return four images of the shape of `like` (b, c, h, w): black, white, a checkerboard, and one
    hot pixel on black.
    """
    x = like.new_zeros(4, *like.shape[1:])
    x[1] = 1
    x[2, :, ::2, ::2] = 1
    x[3, 0, 0, 0] = 1
    return x
