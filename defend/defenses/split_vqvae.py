"""Split-VQ-VAE: restore an image, or each of its quadrants, by a VQ-VAE (arXiv:1711.00937).

The codes of the VQ-VAE stand for clean images. The sources are two papers on 4-Split-VQ-VAE for
MNIST and FGSM: sections 2 to 4 and table 1 of the longer one. The table cannot be read literally;
docs/split-vqvae.md says what it prints and what is done here instead.

Symbols of the papers: K is ``codes``, the number of filters is ``hidden``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from defend.defenses.codec import Codec
from defend.defenses.pieces import join_pieces, split_image
from defend.defenses.split_vqvae_recipe import RestorerRecipe
from defend.errors import Mismatch
from defend.noise import Noise
from defend.purifier import Card, LearnedPurifier


class SplitVQVAE(LearnedPurifier):
    """Split x into grid x grid pieces, restore each one, and join them; ``grid=1`` splits nothing.

    A piece goes through encoder, nearest code and decoder. The pieces of all images are one batch
    of the network. The gradient is autograd through encoder and decoder, and straight through the
    choice of the nearest code, which has no derivative. The relaxation is a softmax over the codes;
    the unit of its temperature is four times the image's mean squared distance to the nearest code.
    """

    card = Card(
        paper=(
            "none: two conference papers without identifiers, see docs/split-vqvae.md;"
            " arXiv:1711.00937"
        ),
        gradient="approximate",
        stochastic=False,
    )
    recipe = RestorerRecipe
    grid: int = 2  # pieces along each side
    codes: int = 300  # the paper's number of embeddings, K
    embedding_dim: int = 64  # not stated in the papers
    hidden: int = 128  # the paper's number of filters
    blocks: int = 1  # residual blocks in the encoder, and as many in the decoder
    channels: int = 1
    size: int = 28  # height and width, in pixels

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range.

        Afterwards the card of this instance takes its own number of channels alone.
        """
        self.require(self.size >= 1, "size", ">= 1")
        divides = self.grid >= 1 and self.size % self.grid == 0
        self.require(divides, "grid", f"a divisor of size={self.size}")
        self.require(self.codes >= 2, "codes", ">= 2")
        self.require(self.embedding_dim >= 1, "embedding_dim", ">= 1")
        self.require(self.hidden >= 1, "hidden", ">= 1")
        self.require(self.blocks >= 0, "blocks", ">= 0")
        self.require(self.channels in (1, 3), "channels", "1 or 3")
        # The card of the class allows both 1 and 3 channels.
        self.card = replace(self.card, channels=(self.channels,))  # type: ignore[misc]

    def build(self) -> nn.Module:
        """Return an untrained network for one piece."""
        return Codec(self.channels, self.hidden, self.blocks, self.embedding_dim, self.codes)

    def example(self, n: int = 6) -> Tensor:
        """Return n random images (n, c, size, size)."""
        generator = torch.Generator().manual_seed(7)
        return torch.rand(n, self.channels, self.size, self.size, generator=generator)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the restored x (b, c, size, size). Raises Mismatch for images of another size."""
        self._check_size(x)
        return join_pieces(self.net(split_image(x, self.grid)), self.grid)

    def relaxed(self, x: Tensor, noise: Noise, temperature: float) -> Tensor:
        """Return what `purify` returns, with the gradient of a softmax over the codes."""
        self._check_size(x)
        codec: Codec = self.net  # type: ignore[assignment]
        pieces = codec.relaxed(split_image(x, self.grid), len(x), temperature)
        return join_pieces(pieces, self.grid)

    def _check_size(self, x: Tensor) -> None:
        if x.shape[2:] != (self.size, self.size):
            raise Mismatch(
                f"{type(self).__name__}: expected images of size={self.size}, got {tuple(x.shape)};"
                " load weights for their size, or train some"
            )
