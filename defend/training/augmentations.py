"""Augmentations of training images, one random change for each image.

Each function takes images x (b, c, h, w) in [0, 1] and returns images of the same shape in [0, 1];
all randomness comes from `noise`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from defend.noise import Noise

TURN = math.radians(10)  # affine: the largest rotation, in radians
STRETCH = 0.1  # affine: the largest relative change of the size
SHIFT = 1 / 16  # affine: the largest shift, as a share of the image
# The share of an image that an erased rectangle covers, and its height divided by its width.
ERASED_AREA = (0.02, 0.2)
ERASED_ASPECT = (0.5, 2.0)
# RGB to luma and two chroma coordinates (YIQ): Smith, "Color gamut transform pairs", 1978, and
# ITU-R BT.470 for the coefficients.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def affine_flip(x: Tensor, noise: Noise) -> Tensor:
    """Return images that are rotated, resized, shifted, and mirrored with probability 1/2.

    The largest changes are TURN, STRETCH and SHIFT. Pixels are interpolated bilinearly; beyond the
    border stands the nearest pixel.
    """
    u = noise.uniform(x.new_empty(len(x), 5))
    turn, stretch, right, down = (2 * u[:, :4] - 1).unbind(1)
    cos, sin = torch.cos(TURN * turn), torch.sin(TURN * turn)
    size = 1 + STRETCH * stretch
    mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
    # grid_sample asks where each pixel comes from, in coordinates from -1 to 1.
    row_x = torch.stack([size * cos * mirror, -size * sin, 2 * SHIFT * right], 1)
    row_y = torch.stack([size * sin * mirror, size * cos, 2 * SHIFT * down], 1)
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, "bilinear", "border", align_corners=False)
    return moved.clamp(0, 1)


def change_colours(x: Tensor, jitter: float, hue: float, grey: float, noise: Noise) -> Tensor:
    """Return images (b, 3, h, w) with another brightness, contrast, saturation and hue.

    Brightness, contrast and saturation are multiplied by up to 1 +- jitter, the hue is rotated by
    up to `hue` turns in the chroma plane, and with probability `grey` an image loses its colour.
    Of images with one channel, brightness and contrast change alone.
    """
    u = noise.uniform(x.new_empty(len(x), 5))
    brightness, contrast, saturation, turn = (2 * u[:, :4] - 1).unbind(1)
    if x.shape[1] == 3:
        chroma = torch.where(u[:, 4] < grey, 0.0, 1 + jitter * saturation)
        x = _change_chroma(x, chroma, 2 * math.pi * hue * turn)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * (1 + jitter * contrast).view(-1, 1, 1, 1)
    return (x * (1 + jitter * brightness).view(-1, 1, 1, 1)).clamp(0, 1)


def _change_chroma(x: Tensor, factor: Tensor, angle: Tensor) -> Tensor:
    """Return images whose chroma is multiplied by `factor` (b,) and rotated by `angle` (b,)."""
    to_yiq: Tensor = torch.tensor(YIQ, dtype=x.dtype, device=x.device)
    change = torch.zeros(len(x), 3, 3, dtype=x.dtype, device=x.device)
    cos, sin = factor * angle.cos(), factor * angle.sin()
    change[:, 0, 0] = 1
    change[:, 1, 1], change[:, 1, 2] = cos, -sin
    change[:, 2, 1], change[:, 2, 2] = sin, cos
    matrix: Tensor = torch.linalg.inv(to_yiq) @ change @ to_yiq
    return (matrix @ x.flatten(2)).view_as(x)


def erase(x: Tensor, probability: float, noise: Noise) -> Tensor:
    """Return images in which, with this probability, a rectangle has one random colour.

    Zhong, Zheng, Kang, Li, Yang, "Random erasing data augmentation", arXiv:1708.04896. The paper
    fills with a random value for each pixel; here a rectangle has one colour, as an object would.
    """
    b, c, h, w = x.shape
    u = noise.uniform(x.new_empty(b, 5 + c))
    area = _between(ERASED_AREA, u[:, 1])
    aspect = torch.exp(_between((math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])), u[:, 2]))
    rows = _covers(h, (area * aspect).sqrt(), u[:, 3])
    columns = _covers(w, (area / aspect).sqrt(), u[:, 4])
    is_erased = rows[:, None, :, None] & columns[:, None, None, :]
    is_erased &= (u[:, 0] < probability).view(-1, 1, 1, 1)
    return torch.where(is_erased, u[:, 5:, None, None], x)


def _between(limits: tuple[float, float], u: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * u


def _covers(length: int, share: Tensor, u: Tensor) -> Tensor:
    """Return which of `length` positions a segment of this share covers: bool (b, length)."""
    centres = (torch.arange(length, device=share.device) + 0.5) / length
    start = (u * (1 - share))[:, None]
    return (centres >= start) & (centres < start + share[:, None])
