"""What stands around a learned codec: padding to its multiple, flips and rotations, fewer levels.

Images x are (b, c, h, w) in [0, 1], of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from defend.defenses.sizes import split_padding
from defend.defenses.small_codec import Rounding, clamp_with_leak

VIEWS = 8  # flips and rotations of a square
Code = Callable[[Tensor], Tensor]  # images -> their reconstructions, of the same shape


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Return x continued by reflection until `multiple` divides its height and its width.

    Images that are smaller than their padding are reflected several times.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        before, after = split_padding(size, multiple)
        if before or after:
            x = x.index_select(dim, reflected_indices(size, before, after, x.device))
    return x


def crop_padding(x: Tensor, height: int, width: int, multiple: int) -> Tensor:
    """Return the part of a padded image that `pad_to_multiple` began from."""
    top, left = split_padding(height, multiple)[0], split_padding(width, multiple)[0]
    return x[:, :, top : top + height, left : left + width]


def run_codec(codec: Any, x: Tensor, rounding: Rounding) -> Tensor:
    """Return the reconstructions of x by a network with the methods of `SmallCodec`, in [0, 1]."""
    height, width = x.shape[2:]
    y_hat = codec.quantise(codec.encode(pad_to_multiple(x, codec.multiple)), rounding)
    decoded = crop_padding(codec.decode(y_hat), height, width, codec.multiple)
    return clamp_with_leak(decoded)


def reflected_indices(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Return the indices -before ... size + after - 1, reflected at the first and last pixel."""
    period = max(1, 2 * (size - 1))
    place = torch.arange(-before, size + after, device=device) % period
    return torch.minimum(place, period - place) if size > 1 else torch.zeros_like(place)


def view(x: Tensor, number: int) -> Tensor:
    """Return x rotated by number % 4 quarters of a turn, mirrored first if number >= 4."""
    mirrored = x.flip(3) if number >= 4 else x
    return mirrored.rot90(number % 4, (2, 3))


def undo_view(x: Tensor, number: int) -> Tensor:
    """Return the image whose `view` is x."""
    upright = x.rot90(-(number % 4), (2, 3))
    return upright.flip(3) if number >= 4 else upright


@torch.no_grad()
def choose_views(code: Code, x: Tensor) -> Tensor:
    """Return for each image the view (b,) whose reconstruction has the smallest squared error."""
    errors = []
    for number in range(VIEWS):
        difference = undo_view(code(view(x, number)), number) - x
        errors.append(difference.square().mean((1, 2, 3)))
    return torch.stack(errors).argmin(0)


def code_best_view(code: Code, x: Tensor) -> Tensor:
    """Return reconstructions of x, each by the one of eight views that has the smallest error.

    The choice has no gradient; the reconstruction by the chosen view has its own. Chen, Ma,
    arXiv:2112.08691, section V (geometric self-ensemble).
    """
    views = choose_views(code, x)
    result = torch.zeros_like(x)
    for number in views.unique().tolist():
        rows = (views == number).nonzero()[:, 0]
        part = undo_view(code(view(x[rows], number)), number)
        result = result.index_put((rows,), part)
    return result


def round_levels(x: Tensor, bits: int, rounding: Rounding) -> Tensor:
    """Return x rounded to 2^bits levels; 0 bits: x itself."""
    top = 2**bits - 1
    return rounding(x * top) / top if bits else x
