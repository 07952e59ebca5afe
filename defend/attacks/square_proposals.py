"""The points that Square Attack queries: the first ones, squares (L-inf) and windows (L2).

Source: Andriushchenko et al., arXiv:1912.00049, section 3. In all functions: x and best are
(b, c, h, w), the clean images and the incumbents; side is the side of a square in pixels; random
is (b, 5 + c) in [0, 1), with the columns that are named below. The points that are returned lie
inside ball and box.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from defend.noise import Noise
from defend.norms import random_signs

RANDOM_BITS = 24  # the number of random bits in a float32 in [0, 1)

# The columns of `random`. A step reads only those that its kind of proposal needs.
FIRST_PLACE = slice(0, 2)  # the row and the column of the square, or of window 1
BOTH_PLACES = slice(0, 4)  # L2: the row and the column of window 1, then of window 2
FLIP = 2  # L-inf, which has no window 2: the signs that change if the square changes nothing
ORIENTATION = 4  # L2: whether the two bumps lie beside or above each other
SIGNS = slice(5, None)  # a sign for each channel


def numbers_per_step(x: Tensor) -> int:
    """Return how many random numbers each image of x (b, c, h, w) needs for one step."""
    return SIGNS.start + x.shape[1]


def start_with_stripes(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """Return x + eps or x - eps, with one sign for each column of each channel  (Algorithm 2)."""
    return (x + eps * random_signs(x[:, :, :1], noise)).clamp(0, 1)


def propose_square(x: Tensor, best: Tensor, eps: float, side: int, random: Tensor) -> Tensor:
    """Return the incumbents with one square at x + eps or x - eps per channel  (Algorithm 2)."""
    square = _place_windows(x, side, random[:, None, FIRST_PLACE]).inside
    return _paint(x, best, eps, square, random[:, SIGNS] < 0.5)


def propose_changing_square(
    x: Tensor, best: Tensor, eps: float, side: int, random: Tensor
) -> Tensor:
    """Return `propose_square`, with other signs where it would change nothing.

    Each choice of other signs has the same probability.
    """
    square = _place_windows(x, side, random[:, None, FIRST_PLACE]).inside
    is_up = random[:, SIGNS] < 0.5
    trial = _paint(x, best, eps, square, is_up)  # only to see which images it would not change
    is_unchanged = (trial == best).flatten(1).all(1)
    is_flipped = is_unchanged[:, None] & choose_channels(x.shape[1], random[:, FLIP])
    return _paint(x, best, eps, square, is_up ^ is_flipped)


def choose_channels(channels: int, u: Tensor) -> Tensor:
    """Return one of the 2^c - 1 non-empty subsets of c channels, as a mask (b, c).

    u: (b,) in [0, 1), which selects the subset. Beyond 24 channels u has too few random bits; the
    further channels follow the 24th.
    """
    bits = min(channels, RANDOM_BITS)
    subset = 1 + (u.double() * (2**bits - 1)).long()
    bit_of_channel = torch.arange(channels, device=u.device).clamp(max=bits - 1)
    chosen: Tensor = (subset[:, None] >> bit_of_channel) % 2 == 1
    return chosen


def _paint(x: Tensor, best: Tensor, eps: float, inside: Tensor, is_up: Tensor) -> Tensor:
    """Return the incumbents, with x + eps (where is_up) or x - eps inside the square.

    inside: bool (b, 1, h, w). is_up: bool (b, c).
    """
    colour = torch.where(is_up[:, :, None, None], x + eps, x - eps).clamp(0, 1)
    return torch.where(inside, colour, best)


def propose_window(x: Tensor, best: Tensor, eps: float, side: int, random: Tensor) -> Tensor:
    """Return the incumbents with budget moved from one window to another  (Algorithm 3).

    Window 1 gets a new pair of bumps on top of its old content; window 2, whose budget pays for
    them, is emptied.
    """
    nu = best - x
    windows = _place_windows(x, side, random[:, BOTH_PLACES].unflatten(1, (2, 2)))
    filled, emptied = windows.inside.split(1, 1)
    bump = _bump_in_window(windows, side, random[:, ORIENTATION], x)
    sign = torch.where(random[:, SIGNS, None, None] < 0.5, 1.0, -1.0)
    old_content = _normalize(torch.where(filled, nu, 0), (-2, -1))
    new_content = torch.where(filled, sign * bump + old_content, 0)
    budget = _budget(nu, filled | emptied, eps)
    nu = torch.where(emptied, 0, nu)
    nu = torch.where(filled, _normalize(new_content, (-2, -1)) * budget.sqrt(), nu)
    return (x + eps * _normalize(nu, (1, 2, 3))).clamp(0, 1)


def _bump_in_window(windows: Windows, side: int, orientation: Tensor, x: Tensor) -> Tensor:
    """Return the pair of bumps (b, 1, h, w), which is right inside window 1 and arbitrary outside.

    orientation: (b,) in [0, 1); below .5 the two bumps lie beside, not above, each other.
    """
    bump = make_bump_pair(side, x.device, x.dtype)
    rows, columns = windows.rows[:, 0, :, None], windows.columns[:, 0, None]
    is_turned = orientation[:, None, None] < 0.5
    first = torch.where(is_turned, columns, rows)
    second = torch.where(is_turned, rows, columns)
    return bump[first, second][:, None]


def _budget(nu: Tensor, windows: Tensor, eps: float) -> Tensor:
    """Return the squared norm (b, c, 1, 1) that the new content of window 1 may have.

    It is the squared norm of nu inside both windows, and what nu leaves unspent of eps^2.
    """
    energy = nu.square()
    spent = torch.where(windows, energy, 0).sum((-2, -1), keepdim=True)
    unspent = (eps**2 - energy.sum((1, 2, 3), keepdim=True)).clamp(min=0) / nu.shape[1]
    return spent + unspent


def start_with_bumps(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """Return x with a centred grid of bump pairs, 5 by 5 or as many as fit  (Algorithm 3).

    Each pair has its own sign and orientation. The perturbation has norm eps before it is clipped.
    """
    b, c, h, w = x.shape
    side = max(min(h, w) // 5, 1)
    rows, columns = h // side, w // side
    sign = random_signs(x.new_empty(b, c, rows, columns), noise)
    is_turned = noise.uniform(x.new_empty(b, 1, rows, columns)) < 0.5
    bump = make_bump_pair(side, x.device, x.dtype)
    turned, upright = bump.T.repeat(rows, columns), bump.repeat(rows, columns)
    grid = torch.where(_enlarge(is_turned, side), turned, upright) * _enlarge(sign, side)
    top, left = (h - rows * side) // 2, (w - columns * side) // 2
    nu = torch.zeros_like(x)
    nu[:, :, top : top + rows * side, left : left + columns * side] = grid
    return (x + eps * _normalize(nu, (1, 2, 3))).clamp(0, 1)


@cache
def make_bump_pair(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return eta of section 3.3: two bumps of opposite signs, one above the other, of joint norm 1.

    The shape is (side, side).
    """
    upper, lower = _make_bump(side // 2, side), -_make_bump(side - side // 2, side)
    return _normalize(torch.cat([upper, lower]), (0, 1)).to(device, dtype)


def _make_bump(h: int, w: int) -> Tensor:
    """Return one bump (h, w) of norm 1, made of rings around the centre.

    Ring j, at distance j, has the weight 1 / (j + 1)^2. The height at a distance is the sum of the
    weights from that ring to the outermost one.
    """
    if h == 0:
        return torch.zeros(0, w, dtype=torch.float64)
    outermost = max(h // 2, w // 2)
    ring_weights = torch.arange(outermost + 1, 0, -1).double().pow(-2)  # from the outermost ring in
    heights_inwards = ring_weights.cumsum(0)
    height = heights_inwards.flip(0)  # by distance
    row_distance = (torch.arange(h) - h // 2).abs()[:, None]
    column_distance = (torch.arange(w) - w // 2).abs()
    bump: Tensor = height[torch.maximum(row_distance, column_distance)]
    return _normalize(bump, (0, 1))


class Windows(NamedTuple):
    """Hold n windows for each image.

    rows (b, n, h) and columns (b, n, w) are counted from the window's corner and clamped to
    0..side-1. inside: bool (b, n, h, w).
    """

    rows: Tensor
    columns: Tensor
    inside: Tensor


def _place_windows(x: Tensor, side: int, u: Tensor) -> Windows:
    """Return n windows for each image, at the places u (b, n, 2) in [0, 1)."""
    h, w = x.shape[-2:]
    rows = torch.arange(h, device=x.device) - (u[..., :1] * (h - side + 1)).long()
    columns = torch.arange(w, device=x.device) - (u[..., 1:] * (w - side + 1)).long()
    clamped_rows, clamped_columns = rows.clamp(0, side - 1), columns.clamp(0, side - 1)
    is_row_inside, is_column_inside = clamped_rows == rows, clamped_columns == columns
    inside = is_row_inside[..., None] & is_column_inside[..., None, :]
    return Windows(clamped_rows, clamped_columns, inside)


def _enlarge(cells: Tensor, side: int) -> Tensor:
    """Return every cell as side x side pixels."""
    return cells.repeat_interleave(side, -2).repeat_interleave(side, -1)


def _normalize(v: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return v / |v| over these dimensions. Zero stays zero."""
    length: Tensor = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
    return v / length.clamp(min=torch.finfo(v.dtype).tiny)
