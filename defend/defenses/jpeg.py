"""JPEG compression (ITU-T T.81, JFIF): Dziugaite, Ghahramani, Roy, arXiv:1608.00853.

Guo et al., arXiv:1711.00117, section 3, use it as an input transformation. Every step is libjpeg's
integer arithmetic in float64, where integers of this size are exact: the pixels are those that
Pillow gives after `Image.save(quality=q)`, on any device and in any batch. Entropy coding is
lossless and is left out.

Symbols: D is the DCT matrix, q the quantisation step, z a coefficient divided by its step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from defend.defenses.jpeg_tables import (
    CHROMA_STEPS,
    ISLOW_LEFT_HALF,
    LUMA_STEPS,
    RGB_TO_YCC,
    YCC_TO_RGB,
)
from defend.gradients import relax, soft_round, straight_through
from defend.noise import Noise
from defend.purifier import Card, Purifier

Rounding = Callable[[Tensor], Tensor]  # of coefficients, with a gradient of its own


class Jpeg(Purifier):
    """Compute x' = JPEG(x) at ``quality``.

    The gradient goes straight through the rounding of pixels. The rounding of coefficients has a
    smooth surrogate derivative (Shin and Song, "JPEG-resistant adversarial images", 2017). Robust
    accuracy of a small CIFAR-10 network at quality 50 under PGD-20 at 4/255: 6 % with this
    gradient, 25 % straight through both roundings, 27 % with the identity. The relaxation is a
    smooth staircase in the place of the rounding of coefficients; its temperature is in steps of
    the quantiser.
    """

    card = Card(paper="arXiv:1608.00853", gradient="approximate", stochastic=False)
    quality: int = 75  # 1 (small file) to 100
    subsampling: Literal["4:2:0", "4:4:4"] = "4:2:0"  # 4:2:0: colour at half the resolution

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        self.require(1 <= self.quality <= 100, "quality", "1..100")
        self.require(self.subsampling in ("4:2:0", "4:4:4"), "subsampling", "'4:2:0' or '4:4:4'")

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return x (b, 1 or 3, h, w), compressed and decompressed."""
        return self.compress(x, quantise)

    def relaxed(self, x: Tensor, noise: Noise, temperature: float) -> Tensor:
        """Return what `purify` returns, with the slope of a smooth staircase for coefficients."""
        return self.compress(x, partial(quantise_softly, temperature=temperature))

    def compress(self, x: Tensor, rounding: Rounding) -> Tensor:
        """Return x (b, 1 or 3, h, w) after JPEG with this rounding of coefficients."""
        levels = round_half_up(x.double() * 255)
        compress = self.compress_luma if x.shape[1] == 1 else self.compress_colour
        return (compress(levels, rounding) / 255).to(x.dtype)

    def compress_luma(self, y: Tensor, rounding: Rounding) -> Tensor:
        """Return a plane y (b, 1, h, w) in 0..255, compressed with the steps for luminance."""
        return compress_plane(y, quantisation_steps(LUMA_STEPS, self.quality, y), rounding)

    def compress_colour(self, rgb: Tensor, rounding: Rounding) -> Tensor:
        """Return rgb (b, 3, h, w) in 0..255, compressed in JFIF's colour space."""
        h, w = rgb.shape[2:]
        ycc = torch.einsum("ij,bjhw->bihw", as_tensor(RGB_TO_YCC, rgb) / 2**16, rgb)
        luma = self.compress_luma(round_half_up(ycc[:, :1]), rounding)
        # libjpeg adds one unit of 1/65536 less than a half before it rounds chrominance.
        chroma = straight_through(ycc[:, 1:], (ycc[:, 1:] + (0.5 - 2**-16)).floor()) + 128
        step = quantisation_steps(CHROMA_STEPS, self.quality, rgb)
        if self.subsampling == "4:2:0":
            small = compress_plane(downsample(chroma), step, rounding)
            chroma = upsample(small[:, :, : -(-h // 2), : -(-w // 2)], h, w)
        else:
            chroma = compress_plane(chroma, step, rounding)
        weights = as_tensor(YCC_TO_RGB, rgb)[:, 1:] / 2**16
        shifts = torch.einsum("ij,bjhw->bihw", weights, chroma - 128)
        return (luma + round_half_up(shifts)).clamp(0, 255)


def compress_plane(x: Tensor, step: Tensor, rounding: Rounding) -> Tensor:
    """Return planes x (b, c, h, w) of levels 0..255 after DCT, quantiser and inverse DCT.

    x is padded at the bottom and the right to whole blocks of 8 x 8. step: q (8, 8).
    """
    h, w = x.shape[2:]
    x = pad_edge(x, -h % 8, -w % 8)
    d = dct_matrix(x)
    tiles = (x - 128).unflatten(3, (-1, 8)).unflatten(2, (-1, 8))
    blocks = tiles.transpose(3, 4)  # (b, c, h/8, w/8, 8, 8)
    rows = round_half_up(blocks @ d.T / 2**11)
    coefficients = round_half_up(d @ rows / 2**15)
    dequantised = rounding(coefficients / (8 * step)) * step
    columns = round_half_up(d.T @ dequantised / 2**11)
    levels = round_half_up(columns @ d / 2**18) + 128
    return levels.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :h, :w].clamp(0, 255)


def round_half_up(z: Tensor) -> Tensor:
    """Return z rounded, halves upwards as by an integer shift; the gradient passes unchanged."""
    return straight_through(z, (z + 0.5).floor())


def quantise(z: Tensor) -> Tensor:
    """Return r = round(z), halves away from zero as libjpeg divides, with a smooth slope.

    The slope is that of r + (z - r)^3 + 0.05 (z - r). The cubic term is Shin and Song's: it tells
    the frequencies that quantisation keeps from those that it wipes out. The linear term is a
    floor: where z is an integer, as in a black or an already compressed image, theirs has slope
    zero.
    """
    r = round_half_away(z.detach())
    return straight_through((z - r) ** 3 + 0.05 * (z - r), r)


def quantise_softly(z: Tensor, temperature: float) -> Tensor:
    """Return round(z) as `quantise` does, with the slope of a smooth staircase."""
    return relax(soft_round(z, temperature), round_half_away(z.detach()))


def round_half_away(z: Tensor) -> Tensor:
    """Return z rounded, halves away from zero as libjpeg divides."""
    return z.sign() * (z.abs() + 0.5).floor()


def quantisation_steps(base: list[list[int]], quality: int, like: Tensor) -> Tensor:
    """Return q (8, 8) at a quality of 1..100, by the scaling of the Independent JPEG Group."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    scaled = (as_tensor(base, like) * scale + 50) / 100
    return scaled.floor().clamp(1, 255)


def dct_matrix(like: Tensor) -> Tensor:
    """Return D (8, 8): 8192 sqrt(8) times the orthonormal DCT-II, in libjpeg's integers."""
    left_half = as_tensor(ISLOW_LEFT_HALF, like)
    parity = as_tensor([[1], [-1]] * 4, like)  # even rows are even functions, odd rows are odd
    return torch.cat([left_half, parity * left_half.flip(1)], 1)


def as_tensor(table: list[list[int]], like: Tensor) -> Tensor:
    """Return the table in the dtype and on the device of `like`."""
    return torch.tensor(table, dtype=like.dtype, device=like.device)


def pad_edge(x: Tensor, down: int, right: int) -> Tensor:
    """Return x with its last row and column repeated `down` and `right` times."""
    if not (down or right):
        return x
    return F.pad(x, (0, right, 0, down), mode="replicate")


def downsample(x: Tensor) -> Tensor:
    """Return the integer means of 2 x 2 pixels of x.

    Halves are rounded down in even columns and up in odd ones, so that no shade is favoured.
    """
    # libjpeg pads to whole blocks of chrominance on the right before it takes means.
    x = pad_edge(x, x.shape[2] % 2, -x.shape[3] % 16)
    bias = torch.tensor([1, 2], dtype=x.dtype, device=x.device).repeat(x.shape[3] // 4)
    mean = F.avg_pool2d(x, 2)
    return straight_through(mean, ((4 * mean + bias) / 4).floor())


def upsample(x: Tensor, h: int, w: int) -> Tensor:
    """Return x enlarged to (b, c, h, w) by libjpeg's "fancy" upsampling.

    Along each axis, the nearer sample has weight 3/4 and the farther one 1/4.
    """
    if x.shape[3] <= 2:  # libjpeg repeats samples if a row is too short for interpolation
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :h, :w]
    x = interpolate_axis(interpolate_axis(x, 2), 3)
    bias = torch.tensor([8, 7], dtype=x.dtype, device=x.device).repeat(x.shape[3] // 2)
    return straight_through(x / 16, ((x + bias) / 16).floor())[:, :, :h, :w]


def interpolate_axis(x: Tensor, dim: int) -> Tensor:
    """Return 4 (3/4 near + 1/4 far): x times 4 with twice as many samples along `dim`."""
    n = x.shape[dim]
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, n - 1, 1)
    previous = torch.cat([first, x.narrow(dim, 0, n - 1)], dim)
    following = torch.cat([x.narrow(dim, 1, n - 1), last], dim)
    return torch.stack([3 * x + previous, 3 * x + following], dim + 1).flatten(dim, dim + 1)
