"""The small learned codec of `robust-codec:model=small`, and what every codec there offers.

Analysis g_a and synthesis g_s are residual convolutions between an image and latents of a few
channels, as in Balle, Minnen, Singh, Hwang, Johnston, arXiv:1802.01436, section 2, with a logistic
density of one scale for each channel as the prior of the rounded latents. b images of c channels,
latents of m channels.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.defenses.codec import to_float32
from defend.gradients import straight_through

GROUPS = 8  # of a group norm
STEPS = 4  # latents are rounded to a fourth of the range of the networks' activations
SMALLEST_SCALE = 0.05  # of the logistic density, in steps
SMALLEST_PROBABILITY = 1e-9  # 30 bits
LEAK = 0.01  # the slope of the clamp to [0, 1] outside of it, in the gradient alone

Rounding = Callable[[Tensor], Tensor]  # latents -> rounded ones, with the gradient of its choice


def round_straight_through(z: Tensor) -> Tensor:
    """Return z rounded, with the gradient of z."""
    return straight_through(z, z.round())


def clamp_with_leak(y: Tensor) -> Tensor:
    """Return y clamped to [0, 1]; outside of it the gradient is LEAK times that of y.

    With a slope of 0 no attacker would see what lies below the black of a background.
    """
    clamped = y.clamp(0, 1)
    return straight_through(clamped + LEAK * (y - clamped), clamped)


class SmallCodec(nn.Module):
    """Map images (b, c, h, w) to latents (b, m, h / multiple, w / multiple), and back.

    The first of the `halvings` of the resolution is a rearrangement of 2x2 pixels, the others are
    convolutions of stride 2. `width` channels are behind the first, `deep_width` behind the others.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        deep_width: int,
        latents: int,
        halvings: int,
        blocks: int,
        has_norms: bool,
    ) -> None:
        super().__init__()
        self.multiple = 2**halvings
        widths = [width, *[deep_width] * (halvings - 1)]
        sizes = (4 * channels, widths, latents, blocks, has_norms)
        self.g_a = nn.Sequential(nn.PixelUnshuffle(2), *make_analysis(*sizes))
        self.g_s = nn.Sequential(*make_synthesis(*sizes), nn.PixelShuffle(2))
        self.log_scale = nn.Parameter(torch.zeros(latents))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstructions in [0, 1] and the bits of each image (b,), for a training."""
        y = self.encode(x)
        y_hat = self.quantise(y, round_straight_through)
        return clamp_with_leak(self.decode(y_hat)), self.bits(y)

    def encode(self, x: Tensor) -> Tensor:
        """Return latents y (b, m, ...) of x, in steps of 1 and not rounded, in float32 or wider."""
        y: Tensor = self.g_a(2 * x - 1)
        return STEPS * to_float32(y)

    def quantise(self, y: Tensor, rounding: Rounding) -> Tensor:
        """Return the latents y_hat that the decoder gets."""
        return rounding(y)

    def decode(self, y_hat: Tensor) -> Tensor:
        """Return reconstructions (b, c, h, w) of rounded latents, not clamped to [0, 1]."""
        x_hat: Tensor = self.g_s(y_hat / STEPS)
        return 0.5 + 0.5 * to_float32(x_hat)

    def bits(self, y: Tensor) -> Tensor:
        """Return the bits (b,) of latents y, once rounded, under their prior: -log2 P, summed.

        P(k) = S((|k| + 1/2) / s) - S((|k| - 1/2) / s) with the logistic function S, which is
        written for -|k| so that no digits are lost where both are near 1.
        """
        y_hat = round_straight_through(y)
        scale = self.log_scale.exp().clamp(min=SMALLEST_SCALE).view(1, -1, 1, 1)
        upper = torch.sigmoid((0.5 - y_hat.abs()) / scale)
        lower = torch.sigmoid((-0.5 - y_hat.abs()) / scale)
        probability = (upper - lower).clamp(min=SMALLEST_PROBABILITY)
        return -probability.log2().sum((1, 2, 3))


def make_analysis(
    pixels: int, widths: list[int], latents: int, blocks: int, has_norms: bool
) -> list[nn.Module]:
    """Return the layers from `pixels` rearranged channels to the latents."""
    outer_blocks = max(1, blocks - 1)
    layers = [conv(pixels, widths[0]), *residual_blocks(widths[0], outer_blocks, has_norms)]
    for above, below in pairwise(widths):
        layers += [conv(above, below, stride=2), *residual_blocks(below, blocks, has_norms)]
    return [*layers, make_norm(widths[-1], has_norms), nn.SiLU(), conv(widths[-1], latents)]


def make_synthesis(
    pixels: int, widths: list[int], latents: int, blocks: int, has_norms: bool
) -> list[nn.Module]:
    """Return the layers from the latents back to `pixels` rearranged channels."""
    layers = [conv(latents, widths[-1]), *residual_blocks(widths[-1], blocks, has_norms)]
    for below, above in pairwise(reversed(widths)):
        layers += [conv(below, 4 * above), nn.PixelShuffle(2)]
        layers += residual_blocks(above, blocks, has_norms)
    return [*layers, make_norm(widths[0], has_norms), nn.SiLU(), conv(widths[0], pixels)]


def residual_blocks(width: int, count: int, has_norms: bool) -> list[nn.Module]:
    return [ResidualBlock(width, has_norms) for _ in range(count)]


class ResidualBlock(nn.Module):
    """Compute x + conv(silu(norm(conv(silu(norm(x)))))), the identity before a training."""

    def __init__(self, width: int, has_norms: bool) -> None:
        super().__init__()
        self.norm1 = make_norm(width, has_norms)
        self.conv1 = conv(width, width)
        self.norm2 = make_norm(width, has_norms)
        self.conv2 = conv(width, width)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.silu(self.norm2(hidden)))
        return out


def conv(fan_in: int, fan_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, 3, stride, padding=1)


def make_norm(width: int, has_norms: bool) -> nn.Module:
    return nn.GroupNorm(GROUPS, width) if has_norms else nn.Identity()
