"""What `split_vqvae` trains: the codec, and the modules that exist in training only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.defenses.codec import Codec
from defend.defenses.pieces import join_pieces, split_image
from defend.defenses.vq import INITIAL_COUNT, MovingMeans, as_rows, nearest_codes
from defend.noise import Noise
from defend.purifier import straight_through


class Trainee(nn.Module):
    """Hold all that is trained: the codec, the moving means of its codes, and the surrogates.

    grid: pieces along each side of an image. surrogates: empty unless the recipe is adversarial.
    """

    def __init__(self, codec: Codec, grid: int, surrogates: nn.ModuleList) -> None:
        super().__init__()
        self.grid = grid
        self.codec = codec
        self.means = MovingMeans(*codec.codebook.codes.shape)
        self.means.sums.copy_(INITIAL_COUNT * codec.codebook.codes)
        self.surrogates = surrogates
        self.to(codec.codebook.codes.device)

    @torch.no_grad()
    def start(self, x: Tensor, seed: int) -> None:
        """Place the codes at encoded pieces of x, and set the output to the brightness of x.

        If training started from mid-grey, all codes would first learn the background, become one
        code, and leave the sigmoid where it has no slope.
        """
        brightness = x.mean().clamp(0.01, 0.99)
        self.codec.decoder[-1].bias.fill_(brightness.logit())  # type: ignore[operator]
        noise = Noise.of(seed, torch.arange(len(x), device=x.device)).fork("start")
        z = self.codec.encode(split_image(x, self.grid))
        self.means.start(self.codec.codebook.codes, as_rows(z), noise)

    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the restored images x (b, c, h, w), and the mean of |z - chosen code|^2.

        The second one is the commitment term of equation 3 of arXiv:1711.00937, without beta. In
        training mode the codes move.
        """
        pieces, codes = split_image(x, self.grid), self.codec.codebook.codes
        z = self.codec.encode(pieces)
        indices = nearest_codes(as_rows(z), codes)
        chosen = self.codec.codebook.look_up(indices, z)
        restored = self.codec.decode(straight_through(z, chosen), *pieces.shape[2:])
        if self.training:
            self.means.update(codes, as_rows(z.detach()), indices, noise)
        return join_pieces(restored, self.grid), F.mse_loss(z, chosen)
