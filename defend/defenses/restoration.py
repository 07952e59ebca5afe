"""Restoration by a diffusion prior: what is measured of an image is kept, and the rest is drawn.

Wang, Yu, Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model" (DDNM),
arXiv:2212.00490. A takes the mean of each group of values, Ap repeats it, so that A Ap = 1, and
Ap A is the orthogonal projection onto images that are constant in each group.

Symbols: A is `Means.reduce`, Ap is `Means.spread`, y is A of the image that is restored, sigma_y is
the standard deviation of noise in y, in the range [-1, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

HALVINGS = 26  # of an interval of length 4: afterwards it is shorter than 1e-7


class Means(ABC):
    """The means of groups of values, and their pseudo-inverse."""

    group: int  # values in a whole group

    @abstractmethod
    def reduce(self, x: Tensor) -> Tensor:
        """Return A x, the mean of each group."""

    @abstractmethod
    def spread(self, y: Tensor, like: Tensor) -> Tensor:
        """Return Ap y: each mean in all values of its group, in the shape of `like`."""

    def project(self, x: Tensor) -> Tensor:
        """Return Ap A x."""
        return self.spread(self.reduce(x), x)

    @property
    def inverse_singular_value(self) -> float:
        """Return 1 / s, where s is the singular value of A that all groups share."""
        return math.sqrt(self.group)


class Pooling(Means):
    """Average pooling over squares of ``scale`` x ``scale`` pixels: super-resolution.

    Squares that the right or the bottom border cuts off are means of fewer pixels.
    """

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.group = scale**2

    def reduce(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.scale, ceil_mode=True)

    def spread(self, y: Tensor, like: Tensor) -> Tensor:
        b, c, h, w = y.shape
        s = self.scale
        repeated = y[:, :, :, None, :, None].expand(b, c, h, s, w, s).reshape(b, c, h * s, w * s)
        return repeated[:, :, : like.shape[2], : like.shape[3]]

    def interpolate(self, y: Tensor, like: Tensor) -> Tensor:
        """Return the bicubic interpolation of the means y, in the shape of `like`."""
        enlarged = F.interpolate(y, scale_factor=self.scale, mode="bicubic")
        return enlarged[:, :, : like.shape[2], : like.shape[3]]


class ChannelMean(Means):
    """The mean of the three channels: colorization."""

    group = 3

    def reduce(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)

    def spread(self, y: Tensor, like: Tensor) -> Tensor:
        return y.expand_as(like)


def noisy_weights(arriving: float, sigma: float, eta: float) -> tuple[float, float]:
    """Return the trust in y, and the fresh noise in its range (DDNM+, equations 17 to 19).

    arriving: the standard deviation of the noise of y as it arrives in x_t'. Together with the
    fresh noise it has the variance sigma^2 = 1 - abar'; y is trusted fully where its own noise is
    not more than that.
    """
    if arriving <= sigma:
        return 1.0, math.sqrt(sigma**2 - arriving**2)
    return sigma * math.sqrt(1 - eta**2) / arriving, eta * sigma


def keep_means(x: Tensor, y: Tensor, means: Means) -> Tensor:
    """Return the image nearest to x with A(image) = y and pixels in [0, 1].

    y: means of pixels in [0, 1], so that such an image exists. In each group it is clip(x + c),
    with one number c for which the mean is right. The gradient is that of this function.
    """
    with torch.no_grad():
        shift = _find_shift(x, y, means)
        moved = x + means.spread(shift, x)
        is_free = ((moved > 0) & (moved < 1)).to(x.dtype)
        at_one = (moved >= 1).to(x.dtype)
        free_share, one_share = means.reduce(is_free), means.reduce(at_one)
    c = (y - one_share - means.reduce(is_free * x)) / free_share.clamp(min=1 / (2 * means.group))
    c = torch.where(free_share > 0, c, shift)
    return (x + means.spread(c, x)).clamp(0, 1)


def _find_shift(x: Tensor, y: Tensor, means: Means) -> Tensor:
    """Return c for which the means of clip(x + c) are y, to 1e-7, by bisection."""
    low, high = torch.full_like(y, -2), torch.full_like(y, 2)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_low = means.reduce((x + means.spread(middle, x)).clamp(0, 1)) < y
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return (low + high) / 2
