"""ComDefend: encode an image as a few binary maps, and decode them.

Jia, Wei, Cao, Foroosh, "ComDefend: An Efficient Image Compression Model to Defend Adversarial
Examples", CVPR 2019, arXiv:1811.12673. Layers, loss and noise are those of the authors' training
program; docs/comdefend.md says where it differs from the paper's text.

    c = Com(x - 1/2)            a real number for each map and pixel
    b = 1[c - n > 0]            n ~ N(0, phi^2); in training b = sigmoid(c - n)
    y = Rec(b)

Symbols: phi is ``noise``, c is `encode`, b is `binarise`, y is `decode`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.defenses.codec import to_float32
from defend.defenses.comdefend_recipe import ComDefendRecipe
from defend.defenses.tiles import over_tiles
from defend.gradients import relax, straight_through
from defend.noise import Noise
from defend.purifier import Card, LearnedPurifier

SHIFT = 0.5  # of the pixels before ComCNN, in the authors' TensorFlow program
SMALLEST_SCALE = 1e-6  # of the margins of one image, below which a relaxation would divide by 0
WIDEST = 256  # channels of the widest layer in the paper
COM_WIDTHS = {3: (16, 32, 64, 128, 256, 128, 64, 32), 1: (32, 64, 128, 256, 128, 64, 64, 32)}
REC_WIDTHS = {3: (32, 64, 128, 256, 128, 64, 32, 16), 1: (32, 64, 128, 256, 128, 64, 64, 32)}


class ComDefend(LearnedPurifier):
    """Reconstruct x from ``code_maps`` one-bit maps of its own size.

    Any size of images is taken, since no layer changes the resolution. The gradient is straight
    through the threshold: db/dc = 1.
    """

    card = Card(paper="arXiv:1811.12673", gradient="approximate", stochastic=True)
    any_layout = True
    recipe = ComDefendRecipe
    architecture = "comdefend"
    uses = frozenset({"noise", "patch", "overlap"})
    code_maps: int = 12  # bits for each pixel of a colour image; the paper has 4 for grey images
    width: int = WIDEST  # channels of the widest layer; the others shrink in proportion
    channels: int = 3
    noise: float = 0.0  # phi at test time: 0, 1 and 20 are the released variants
    patch: int = 0  # side of tiles that are purified one by one, 32 in the paper; 0: whole images
    overlap: int = 0  # pixels that neighbouring tiles share, over which they are blended

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range.

        Afterwards the card of this instance says whether noise is drawn, and its channels.
        """
        self.require(self.code_maps >= 1, "code_maps", ">= 1")
        self.require(self.width >= 16, "width", ">= 16")
        self.require(self.channels in (1, 3), "channels", "1 or 3")
        self.require(self.noise >= 0, "noise", ">= 0")
        self.require(self.patch >= 0, "patch", ">= 0")
        self.require(0 <= self.overlap <= self.patch // 2, "overlap", "0 to half of patch")
        self.card = replace(  # type: ignore[misc]
            self.card, channels=(self.channels,), stochastic=self.noise > 0
        )

    def build(self) -> nn.Module:
        """Return both networks with random weights."""
        return Autoencoder(self.channels, self.code_maps, self.width)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the reconstruction of x (b, c, h, w)."""
        return self._reconstruct(x, noise, lambda margin: straight_through(margin, bits(margin)))

    def relaxed(self, x: Tensor, noise: Noise, temperature: float) -> Tensor:
        """Return `purify` with the derivative of sigmoid((c - n) / (temperature mean |c - n|))."""

        def threshold(margin: Tensor) -> Tensor:
            scale = margin.detach().abs().mean((1, 2, 3), keepdim=True).clamp(min=SMALLEST_SCALE)
            return relax(torch.sigmoid(margin / (temperature * scale)), bits(margin))

        return self._reconstruct(x, noise, threshold)

    def binary_maps(self, x: Tensor, noise: Noise) -> Tensor:
        """Return b (b, code_maps, h, w), zeros and ones, of whole images x (b, c, h, w)."""
        return bits(self._margin(x, noise))

    def _reconstruct(
        self, x: Tensor, noise: Noise, threshold: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return Rec(threshold(c - n)) of x (b, c, h, w), tile by tile if there is a patch."""

        def reconstruct(tiles: Tensor) -> Tensor:
            y: Tensor = self.net.decode(threshold(self._margin(tiles, noise)))  # type: ignore
            return y

        return (
            over_tiles(reconstruct, x, self.patch, self.overlap) if self.patch else reconstruct(x)
        )

    def _margin(self, tiles: Tensor, noise: Noise) -> Tensor:
        """Return c - n of tiles (b t, c, h, w), t for each of the b images that noise is of."""
        c: Tensor = self.net.encode(tiles)  # type: ignore[operator]
        if not self.noise:
            return c
        n = noise.normal(c.reshape(len(noise), -1, *c.shape[1:]))
        return c - self.noise * n.reshape(c.shape)


def bits(margin: Tensor) -> Tensor:
    """Return 1 where the margin c - n is positive, else 0."""
    return (margin > 0).to(margin.dtype)


class Autoencoder(nn.Module):
    """ComCNN and RecCNN: nine 3x3 convolutions each, with an ELU after each but the last."""

    def __init__(self, channels: int, code_maps: int, width: int) -> None:
        super().__init__()
        self.com = stack(channels, *scaled(COM_WIDTHS[channels], width), code_maps)
        self.rec = stack(code_maps, *scaled(REC_WIDTHS[channels], width), channels)

    def encode(self, x: Tensor) -> Tensor:
        """Return c (b, code_maps, h, w) of images x (b, c, h, w), in float32 or wider."""
        return to_float32(run_stack(self.com, x - SHIFT))

    def decode(self, code: Tensor) -> Tensor:
        """Return images y (b, c, h, w) in (0, 1) from codes b (b, code_maps, h, w) in [0, 1]."""
        return torch.sigmoid(to_float32(run_stack(self.rec, code)))


def stack(*widths: int) -> nn.ModuleList:
    """Return the convolutions from each number of channels to the next."""
    return nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))


def scaled(widths: tuple[int, ...], widest: int) -> list[int]:
    """Return the widths in proportion to their widest layer, at least one channel each."""
    return [max(1, round(width * widest / WIDEST)) for width in widths]


def run_stack(convolutions: nn.ModuleList, x: Tensor) -> Tensor:
    """Return x after the convolutions, with an ELU between each two."""
    for convolution in convolutions[:-1]:
        x = F.elu(convolution(x))
    y: Tensor = convolutions[-1](x)
    return y
