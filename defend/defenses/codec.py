"""The VQ-VAE of `split_vqvae`: encoder, codebook and decoder.

The papers' table 1 is ambiguous; docs/split-vqvae.md says how it is read here. b images of c
channels, codes of d dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.defenses.sizes import split_padding
from defend.defenses.vq import Codebook

MULTIPLE = 4  # of which codes have the height and the width


class Codec(nn.Module):
    """Map images (b, c, h, w) in [0, 1], of any size, to their restorations.

    There is one code for 4 x 4 pixels. Sizes that four does not divide are padded by repeating the
    border, and cropped afterwards.
    """

    def __init__(self, channels: int, hidden: int, blocks: int, dim: int, codes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, hidden, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 4, stride=2, padding=1),
            *(Residual(hidden, (3, 1)) for _ in range(blocks)),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, dim, 1),
        )
        self.codebook = Codebook(codes, dim)
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, hidden, 1),
            *(Residual(hidden, (1, 3)) for _ in range(blocks)),
            nn.ReLU(inplace=True),
            # These two are a transposed convolution of kernel 2 and stride 2. Its windows do not
            # overlap, so nothing is summed, and the backward pass takes half the time on a CPU.
            nn.Conv2d(hidden, 4 * hidden, 1),
            nn.PixelShuffle(2),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(hidden, channels, 3, stride=2, padding=1, output_padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored images (b, c, h, w)."""
        return self.decode(self.codebook(self.encode(x)), x.shape[2], x.shape[3])

    def relaxed(self, x: Tensor, images: int, temperature: float) -> Tensor:
        """Return what `forward` returns, with the gradient of a softmax over the codes.

        x: the pieces of `images` images, in equal numbers. temperature: see `Codebook.relaxed`.
        """
        z = self.codebook.relaxed(self.encode(x), images, temperature)
        return self.decode(z, x.shape[2], x.shape[3])

    def encode(self, x: Tensor) -> Tensor:
        """Return z (b, d, ceil(h / 4), ceil(w / 4)), in float32 whatever the precision of x."""
        above_and_below, left_and_right = (split_padding(side, MULTIPLE) for side in x.shape[2:])
        padded = F.pad(x, (*left_and_right, *above_and_below), mode="replicate")
        return to_float32(self.encoder(padded))

    def decode(self, z: Tensor, h: int, w: int) -> Tensor:
        """Return images (b, c, h, w) from codes z (b, d, ceil(h / 4), ceil(w / 4)).

        The output goes through a sigmoid: a clamp would have no gradient where the background is
        black.
        """
        top, left = split_padding(h, MULTIPLE)[0], split_padding(w, MULTIPLE)[0]
        cropped = self.decoder(z)[:, :, top : top + h, left : left + w]
        return torch.sigmoid(to_float32(cropped))


class Residual(nn.Module):
    """Compute h + conv(relu(conv(relu(h)))), of stride 1, with two kernels of these sizes."""

    def __init__(self, hidden: int, kernels: tuple[int, int]) -> None:
        super().__init__()
        first, second = (nn.Conv2d(hidden, hidden, k, padding=k // 2) for k in kernels)
        # The first ReLU is not in place, because h is needed for the sum.
        self.branch = nn.Sequential(nn.ReLU(), first, nn.ReLU(inplace=True), second)

    def forward(self, h: Tensor) -> Tensor:
        """Return a tensor of the shape of h (b, hidden, height, width)."""
        out: Tensor = h + self.branch(h)
        return out


def to_float32(t: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 if it is float64."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
