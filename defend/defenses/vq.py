"""Vector quantisation: van den Oord, Vinyals, Kavukcuoglu, arXiv:1711.00937.

The paper is "Neural Discrete Representation Learning". There are n vectors of d dimensions and K
codes. Symbols of the paper and their names here: z_e(x) is ``z``, e is ``codes``, sg is `detach`,
gamma is DECAY, N_i is ``counts``, m_i is ``sums``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from defend.gradients import relax, straight_through
from defend.noise import Noise

BLOCK = 2**20  # distances in memory: 4 MiB of float32, which stays in the cache of a core
DECAY = 0.99  # gamma of appendix A.1
SMOOTHING = 1e-5  # Laplace smoothing: no code divides by a count of zero
MIN_COUNT = 0.1  # a code is replaced when its moving mean of vectors for each batch is below this
# The count of a code that was just placed. It has ln(MIN_COUNT / INITIAL_COUNT) / ln(DECAY) = 69
# batches to be chosen, and little inertia.
INITIAL_COUNT = 0.2


@torch.no_grad()
def nearest_codes(z: Tensor, codes: Tensor) -> Tensor:
    """Return the indices int64 (n,) of the codes (K, d) nearest to z (n, d): equation 1.

    Compares |z - e|^2 / 2 without |z|^2 / 2, which is the same for all codes. Blocks of z are
    handled one by one, so that memory grows with n alone.
    """
    rows = max(1, BLOCK // len(codes))
    scores = z.new_empty(min(rows, len(z)), len(codes))
    indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
    with torch.autocast(z.device.type, enabled=False):  # bfloat16 would choose other codes
        half_norms = codes.square().sum(1) / 2
        for start in range(0, len(z), rows):
            block = z[start : start + rows]
            out = scores[: len(block)]
            torch.addmm(half_norms, block, codes.T, alpha=-1, out=out)
            # argmin took longer than min on a CPU when measured.
            indices[start : start + rows] = out.min(1).indices
    return indices


def soft_codes(z: Tensor, codes: Tensor, widths: Tensor) -> Tensor:
    """Return for each z (n, d) the mean of the codes (K, d), weighted by a softmax of their
    distances |z - e|^2 / width.

    widths: (n,) > 0. |z|^2 is the same for all codes and is left out. Blocks of z are computed
    again in the backward pass, so that memory grows with n alone.
    """
    rows = max(1, BLOCK // len(codes))
    means = [
        checkpoint(_mix_codes, *block, codes, use_reentrant=False, preserve_rng_state=False)
        for block in zip(z.split(rows), widths.split(rows), strict=True)
    ]
    return torch.cat(means)


def _mix_codes(z: Tensor, widths: Tensor, codes: Tensor) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        half_distances = codes.square().sum(1) / 2 - z @ codes.T
        return (-2 * half_distances / widths[:, None]).softmax(1) @ codes


class Codebook(nn.Module):
    """K codes of d dimensions. `MovingMeans` moves them, no gradient does: they are a buffer."""

    codes: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(codes, dim))

    def forward(self, z: Tensor) -> Tensor:
        """Return the nearest code at each place of z (b, d, h, w), with z's gradient: section
        3.2."""
        return straight_through(z, self.look_up(nearest_codes(as_rows(z), self.codes), z))

    def relaxed(self, z: Tensor, images: int, temperature: float) -> Tensor:
        """Return what `forward` returns, with the gradient of `soft_codes`.

        The unit of the temperature is (2 r)^2, where r^2 is the mean squared distance to the
        nearest code over the places of an image: `images` of them lie in z in equal parts, one
        after the other. At 0.3 of it attacks break most, as docs/split-vqvae.md shows.
        """
        rows = as_rows(z)
        nearest = self.codes[nearest_codes(rows, self.codes)]
        squares = (rows - nearest).detach().square().sum(1)
        units = 4 * squares.view(images, -1).mean(1).clamp(min=torch.finfo(z.dtype).tiny ** 0.5)
        widths = (temperature * units).repeat_interleave(len(rows) // images)
        soft = soft_codes(rows, self.codes, widths)
        return as_maps(relax(soft, nearest), z)

    def look_up(self, indices: Tensor, like: Tensor) -> Tensor:
        """Return the codes of the indices (b h w,) in the shape of `like` (b, d, h, w)."""
        return as_maps(self.codes[indices], like)


def as_rows(z: Tensor) -> Tensor:
    """Return z (b, d, h, w) as vectors (b h w, d)."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def as_maps(rows: Tensor, like: Tensor) -> Tensor:
    """Return vectors (b h w, d) in the shape of `like` (b, d, h, w): the inverse of `as_rows`."""
    b, d, h, w = like.shape
    return rows.view(b, h, w, d).permute(0, 3, 1, 2)


class MovingMeans(nn.Module):
    """Move each code to the moving mean of the vectors that chose it: appendix A.1.

    N_i <- gamma N_i + (1 - gamma) n_i
    m_i <- gamma m_i + (1 - gamma) sum_j z_ij
    e_i = m_i / N_i, with smoothed N_i

    This exists in training only: weights that ship hold the codes and no counts.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.full((codes,), INITIAL_COUNT))
        self.register_buffer("sums", torch.zeros(codes, dim))

    @torch.no_grad()
    def start(self, codes: Tensor, z: Tensor, noise: Noise) -> None:
        """Place the codes (K, d) at vectors of z (n, d), preferring those far from the mean."""
        codes.copy_(sample_distant(z, z.mean(0), len(codes), noise))
        self.counts.fill_(INITIAL_COUNT)
        self.sums.copy_(INITIAL_COUNT * codes)

    @torch.no_grad()
    def update(self, codes: Tensor, z: Tensor, indices: Tensor, noise: Noise) -> None:
        """Move the codes (K, d) by one batch z (n, d), whose vectors chose the indices (n,)."""
        batch_counts = torch.zeros_like(self.counts)
        batch_counts.index_add_(0, indices, torch.ones_like(z[:, 0]))
        batch_sums = torch.zeros_like(self.sums).index_add_(0, indices, z)
        self.counts.lerp_(batch_counts, 1 - DECAY)
        self.sums.lerp_(batch_sums, 1 - DECAY)
        total = self.counts.sum()
        smoothed = (self.counts + SMOOTHING) / (total + len(codes) * SMOOTHING) * total
        self._replace_unused(codes, self.sums / smoothed[:, None], z, codes[indices], noise)

    def _replace_unused(
        self, codes: Tensor, means: Tensor, z: Tensor, chosen: Tensor, noise: Noise
    ) -> None:
        """Set the codes (K, d) to the means, and unused ones to vectors far from their code.

        chosen: the code (n, d) of each vector of z.
        """
        samples = sample_distant(z, chosen, len(codes), noise)
        unused = (self.counts < MIN_COUNT)[:, None]
        codes.copy_(torch.where(unused, samples, means))
        self.sums.copy_(torch.where(unused, INITIAL_COUNT * samples, self.sums))
        self.counts.masked_fill_(unused[:, 0], INITIAL_COUNT)


def sample_distant(z: Tensor, reference: Tensor, k: int, noise: Noise) -> Tensor:
    """Return k of the vectors z (n, d), in proportion to the squared distance from `reference`.

    This is the seeding of k-means++ (Arthur, Vassilvitskii, SODA 2007). Drawn evenly, most would be
    the one vector that stands for empty background. noise: any number of streams, at least one.
    """
    squares = (z - reference).double().square().sum(1)
    # The additions keep the sum above 0 if all z are equal to `reference`.
    weights = squares + squares.mean() / 1000 + torch.finfo(torch.float64).tiny
    ends = weights.cumsum(0)
    u = noise.uniform(ends.new_empty(len(noise), -(-k // len(noise)))).flatten()[:k]
    return z[torch.searchsorted(ends, u * ends[-1], right=True).clamp(max=len(z) - 1)]
