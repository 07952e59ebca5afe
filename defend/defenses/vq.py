"""Vector quantisation: van den Oord, Vinyals, Kavukcuoglu, "Neural discrete representation learning", arXiv:1711.00937.

n vectors of d dimensions against K codes. The paper's z_e(x), e and sg stand here as z, codes and `detach`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.noise import Noise
from defend.purifier import straight_through

BLOCK = 2**20  # distances that exist at once: 4 MiB of float32, which stays in a core's cache
DECAY = 0.99  # appendix A.1: gamma
SMOOTHING = 1e-5  # Laplace: no code divides by a count of zero
DEAD = 0.1  # a code is moved where fewer vectors than this choose it in a batch, in the moving mean
NEW = 0.2  # the count of a code that has just been placed: ln(DEAD / NEW) / ln(DECAY) = 69 batches to be chosen, and little inertia


@torch.no_grad()
def nearest(z: Tensor, codes: Tensor) -> Tensor:
    """Equation 1: the number of the code nearest to each of z (n, d) among codes (K, d): int64 (n,).

    |z - e|^2 / 2 without |z|^2 / 2, which all codes share, for a block of z at a time: memory grows with n alone.
    """
    rows = max(1, BLOCK // len(codes))
    scores, found = (
        z.new_empty(min(rows, len(z)), len(codes)),
        torch.empty(len(z), dtype=torch.int64, device=z.device),
    )
    with torch.autocast(z.device.type, enabled=False):  # bfloat16 would choose other codes
        half = codes.square().sum(1) / 2
        for start in range(0, len(z), rows):
            part = z[start : start + rows]
            torch.addmm(half, part, codes.T, alpha=-1, out=scores[: len(part)])
            found[start : start + rows] = (
                scores[: len(part)].min(1).indices
            )  # argmin took longer on a CPU when measured
    return found


class Codebook(nn.Module):
    """K codes of d dimensions. They follow the data (`MovingMeans`) and no gradient: a buffer."""

    codes: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(codes, dim))

    def forward(self, z: Tensor) -> Tensor:
        """z (b, d, h, w) -> the nearest code at each place, with the gradient of z: section 3.2."""
        return straight_through(z, self.at(nearest(as_rows(z), self.codes), z))

    def at(self, numbers: Tensor, like: Tensor) -> Tensor:
        """numbers (b h w,) -> codes (b, d, h, w), the shape of `like`."""
        b, d, h, w = like.shape
        return self.codes[numbers].view(b, h, w, d).permute(0, 3, 1, 2)


def as_rows(z: Tensor) -> Tensor:
    """(b, d, h, w) -> (b h w, d)."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


class MovingMeans(nn.Module):
    """Appendix A.1: each code is the moving mean of the vectors that chose it.

    N_i <- gamma N_i + (1 - gamma) n_i,   m_i <- gamma m_i + (1 - gamma) sum_j z_ij,   e_i = m_i / N_i,  N_i smoothed.

    Lives while training alone: weights that ship hold the codes and no counts.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.full((codes,), NEW))
        self.register_buffer("sums", torch.zeros(codes, dim))

    @torch.no_grad()
    def start(self, codes: Tensor, z: Tensor, noise: Noise) -> None:
        """Put the codes (K, d) at vectors of z (n, d), far ones preferred."""
        codes.copy_(spread(z, z.mean(0), len(codes), noise))
        self.counts.fill_(NEW)
        self.sums.copy_(NEW * codes)

    @torch.no_grad()
    def update(self, codes: Tensor, z: Tensor, numbers: Tensor, noise: Noise) -> None:
        """One batch, z (n, d) and the code that each chose (n,): moves the codes (K, d)."""
        chosen = torch.zeros_like(self.counts).index_add_(0, numbers, torch.ones_like(z[:, 0]))
        self.counts.lerp_(chosen, 1 - DECAY)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, numbers, z), 1 - DECAY)
        total = self.counts.sum()
        smoothed = (self.counts + SMOOTHING) / (total + len(codes) * SMOOTHING) * total
        moved = spread(z, codes[numbers], len(codes), noise)
        dead = (self.counts < DEAD)[:, None]
        codes.copy_(torch.where(dead, moved, self.sums / smoothed[:, None]))
        self.sums.copy_(torch.where(dead, NEW * moved, self.sums))
        self.counts.masked_fill_(dead[:, 0], NEW)


def spread(z: Tensor, known: Tensor, k: int, noise: Noise) -> Tensor:
    """k of z (n, d), drawn in proportion to the squared distance from `known`: the seeding of k-means++, Arthur, Vassilvitskii, SODA 2007.

    Drawn evenly, most would be the one vector that stands for empty background. noise: of any length, at least 1.
    """
    squares = (z - known).double().square().sum(1)
    ends = (squares + squares.mean() / 1000 + torch.finfo(torch.float64).tiny).cumsum(
        0
    )  # > 0 where all z are `known`
    u = noise.uniform(ends.new_empty(len(noise), -(-k // len(noise)))).flatten()[:k]
    return z[torch.searchsorted(ends, u * ends[-1], right=True).clamp(max=len(z) - 1)]


class Codec(nn.Module):
    """Encoder, codebook, decoder: images (b, c, h, w) in [0, 1] of any size to their restorations.

    Four by four pixels for a code. Sizes that four does not divide are padded by their border, and cropped afterwards.
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
            nn.Conv2d(
                hidden, 4 * hidden, 1
            ),  # with the shuffle, a transposed convolution of kernel 2 and stride 2: its windows
            nn.PixelShuffle(
                2
            ),  # do not overlap, so nothing is summed; backward takes half the time on a CPU
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(hidden, channels, 3, stride=2, padding=1, output_padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.codebook(self.encode(x)), x.shape[2], x.shape[3])

    def encode(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, d, h / 4, w / 4), rounded up; float32 whatever the precision of the convolutions."""
        (top, bottom), (left, right) = (padding(n) for n in x.shape[2:])
        return wide(self.encoder(F.pad(x, (left, right, top, bottom), mode="replicate")))

    def decode(self, z: Tensor, h: int, w: int) -> Tensor:
        """(b, d, h / 4, w / 4) -> (b, c, h, w). A sigmoid: a clamp would have no gradient wherever the background is black."""
        (top, _), (left, _) = padding(h), padding(w)
        return torch.sigmoid(wide(self.decoder(z)[:, :, top : top + h, left : left + w]))


class Residual(nn.Module):
    """h + conv(relu(conv(relu(h)))), of stride 1, with kernels of these sizes."""

    def __init__(self, hidden: int, kernels: tuple[int, int]) -> None:
        super().__init__()
        first, second = (nn.Conv2d(hidden, hidden, k, padding=k // 2) for k in kernels)
        self.branch = nn.Sequential(
            nn.ReLU(), first, nn.ReLU(inplace=True), second
        )  # the first may not write into h

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.branch(h)
        return out


def padding(n: int) -> tuple[int, int]:
    """Pixels before and behind that make n a multiple of four."""
    missing = -n % 4
    return missing // 2, missing - missing // 2


def wide(t: Tensor) -> Tensor:
    """At least float32."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
