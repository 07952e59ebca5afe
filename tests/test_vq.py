"""Vector quantisation: the nearest code, its memory, moving means and the seeding of codes."""

from math import ceil, log

import pytest
import torch
from tiny_restorers import noise, random_normal
from torch.utils._python_dispatch import TorchDispatchMode

from defend.defenses import vq
from defend.defenses.vq import MovingMeans, nearest_codes, sample_distant


@pytest.mark.parametrize(("n", "k", "d"), [(1, 2, 1), (7, 3, 2), (1000, 50, 16), (3000, 1000, 64)])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_the_nearest_code_equals_that_of_cdist(n, k, d, shift):
    """In float64 the index is that of cdist.

    In float32 the distance is that of cdist up to rounding, even where all vectors are far from the
    origin.
    """
    z, codes = random_normal(n, d, seed=1) + shift, random_normal(k, d, seed=2) + shift
    distances = torch.cdist(z.double(), codes.double())
    assert torch.equal(nearest_codes(z.double(), codes.double()), distances.argmin(1))
    distance = (z - codes[nearest_codes(z, codes)]).double().norm(dim=1)
    assert (distance - distances.amin(1)).max() < 1e-3 * (1 + shift)


def test_blocks_do_not_change_the_nearest_codes(monkeypatch):
    z, codes = random_normal(501, 8, seed=1).double(), random_normal(30, 8, seed=2).double()
    expected = nearest_codes(z, codes)
    for block in (1, 30, 31, 1000):
        monkeypatch.setattr(vq, "BLOCK", block)
        assert torch.equal(nearest_codes(z, codes), expected)


class LargestTensor(TorchDispatchMode):
    """Record the most bytes of any tensor that an operation returns while this mode is active."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return out


def largest_tensor(search):
    """Return the bytes of the largest tensor of a search."""
    with LargestTensor() as recorder:
        search()
    return recorder.bytes


def test_the_search_holds_one_block_of_distances():
    """Search K = 1000 codes for 256 images of 7 x 7 vectors.

    The vectors themselves do not count; cdist makes no copy of them either.
    """
    z, codes = random_normal(256 * 49, 4, seed=1), random_normal(1000, 4, seed=2)
    in_blocks = largest_tensor(lambda: nearest_codes(z, codes))
    with_cdist = largest_tensor(lambda: torch.cdist(z, codes).argmin(1))
    tripled = largest_tensor(lambda: nearest_codes(z.repeat(3, 1), codes))
    assert with_cdist >= 256 * 49 * 1000 * 4, "the recorder misses the matrix of distances"
    assert in_blocks <= with_cdist / 4
    assert in_blocks == tripled, "memory grows with the batch"


def test_the_search_ignores_autocast():
    z, codes = random_normal(2000, 16, seed=1), random_normal(500, 16, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = nearest_codes(z, codes)
        in_bfloat16 = (codes.square().sum(1) / 2 - z @ codes.T).argmin(1)
    assert torch.equal(under_autocast, nearest_codes(z, codes))
    assert not torch.equal(under_autocast, in_bfloat16), "bfloat16 changes no code of these vectors"


def test_moving_means_follow_the_equations():
    """After t equal batches, N = gamma^t N_0 + (1 - gamma^t) n, and m likewise; codes are m / N.

    The codes converge to the means of the vectors.
    """
    z, indices = random_normal(60, 4, seed=1), torch.arange(60) % 3
    codes, means = random_normal(3, 4, seed=2), MovingMeans(3, 4)
    first_codes, first_counts = codes.clone(), torch.full((3,), vq.INITIAL_COUNT)
    means.sums.copy_(first_counts[:, None] * codes)
    n, m = torch.full((3,), 20.0), torch.stack([z[indices == k].sum(0) for k in range(3)])
    for t in range(1, 501):
        means.update(codes, z, indices, noise(1))
        if t in (1, 2, 500):
            g = vq.DECAY**t
            counts = g * first_counts + (1 - g) * n
            sums = g * first_counts[:, None] * first_codes + (1 - g) * m
            assert torch.allclose(means.counts, counts, rtol=1e-4)
            assert torch.allclose(codes, sums / counts[:, None], atol=1e-4)
    assert torch.allclose(codes, m / 20, atol=1e-3)


def test_unused_codes_move_to_the_data_and_used_ones_stay():
    """The data are in two places, and two of the four codes are far from both.

    They are replaced after ln(MIN_COUNT / INITIAL_COUNT) / ln(gamma) batches without a vector.
    """
    centres = torch.tensor([[5.0, 5.0], [-5.0, -5.0]])
    unused = torch.tensor([[90.0, 90.0], [-90.0, 90.0]])
    clusters = [0.1 * random_normal(50, 2, seed=i + 1) + centre for i, centre in enumerate(centres)]
    z, codes, means = torch.cat(clusters), torch.cat([centres, unused]), MovingMeans(4, 2)
    means.sums.copy_(vq.INITIAL_COUNT * codes)

    def update():
        means.update(codes, z, nearest_codes(z, codes), noise(7))

    for _ in range(ceil(log(vq.MIN_COUNT / vq.INITIAL_COUNT) / log(vq.DECAY)) - 1):
        update()
    assert codes[2:].abs().min() > 80, "unused codes were replaced too early"
    update()
    assert codes[2:].abs().max() < 10, "unused codes stay far from the data"
    assert torch.allclose(codes[:2], centres, atol=0.1)
    for _ in range(300):
        update()
    assert len(nearest_codes(z, codes).unique()) == 4, "a replaced code is not used"


def test_seeding_prefers_distant_vectors():
    """One vector in a hundred is distant; all draws but one in a thousand should be such
    vectors."""
    z = torch.zeros(1000, 3)
    z[::100] = 1
    assert 0.99 < sample_distant(z, torch.zeros(3), 10000, noise(64)).mean() < 1


def test_seeding_works_if_all_vectors_are_equal():
    sampled = sample_distant(torch.ones(10, 3), torch.ones(3), 4, noise(1))
    assert torch.equal(sampled, torch.ones(4, 3))
