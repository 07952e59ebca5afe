"""Means and their pseudo-inverses, and the projection that keeps them within [0, 1]."""

import pytest
import torch

from defend.defenses.restoration import ChannelMean, Pooling, keep_means

MEANS = [Pooling(1), Pooling(2), Pooling(3), Pooling(8), ChannelMean()]
SIZES = [(8, 8), (7, 9), (1, 5)]


def images(shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def name_of(means):
    return f"{type(means).__name__}{means.group}"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("means", MEANS, ids=name_of)
def test_spread_is_the_pseudo_inverse_of_the_means(means, size):
    """A Ap = 1, and Ap A is symmetric: the four conditions of Moore and Penrose."""
    x, other = images((2, 3, *size)), images((2, 3, *size), seed=1)
    y = means.reduce(x)
    torch.testing.assert_close(means.reduce(means.spread(y, x)), y)
    inner = (means.project(x) * other).sum()
    torch.testing.assert_close(inner, (x * means.project(other)).sum())


@pytest.mark.parametrize("means", MEANS, ids=name_of)
def test_the_singular_value_is_that_of_the_matrix(means):
    rows = torch.eye(3 * 24 * 24, dtype=torch.float64).view(-1, 3, 24, 24)
    first = means.reduce(rows[: 3 * 24 * 24]).flatten(1)  # the matrix, transposed
    norms = first.T.norm(dim=1)  # its rows are orthogonal, of the length of the singular value
    torch.testing.assert_close(norms, torch.full_like(norms, 1 / means.inverse_singular_value))


def test_another_factor_is_no_pseudo_inverse():
    """The check of the pseudo-inverse sees sums in place of means."""
    means, x = Pooling(2), images((1, 3, 8, 8))
    sums = 4 * means.reduce(x)
    assert not torch.allclose(4 * means.reduce(means.spread(sums, x)), sums)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("means", MEANS, ids=name_of)
def test_means_are_kept_within_the_range(means, size):
    y = means.reduce(images((4, 3, *size)))
    y[0], y[1] = 0, 1
    x = keep_means(images((4, 3, *size), seed=1), y, means)
    assert x.min() >= 0 and x.max() <= 1
    torch.testing.assert_close(means.reduce(x), y, atol=1e-7, rtol=0)
    in_float32 = keep_means(images((4, 3, *size), 1, torch.float32), y.float(), means)
    torch.testing.assert_close(means.reduce(in_float32), y.float(), atol=1e-6, rtol=0)


def test_clipping_after_the_correction_loses_the_means():
    """What `keep_means` is for: the plain correction leaves [0, 1], and clipping moves the mean."""
    means, x = Pooling(2), images((1, 3, 8, 8))
    y = 0.1 * means.reduce(images((1, 3, 8, 8), seed=1))
    clipped = (x + means.spread(y - means.reduce(x), x)).clamp(0, 1)
    assert (means.reduce(clipped) - y).abs().max() > 0.01


@pytest.mark.parametrize("means", [Pooling(2), ChannelMean()], ids=name_of)
def test_no_other_image_with_these_means_is_nearer(means):
    """A projection p onto a convex set: (x - p) . (z - p) <= 0 for each z of the set."""
    x = 2 * images((1, 3, 8, 8)) - 0.5
    y = means.reduce(images((1, 3, 8, 8), seed=1))
    p = keep_means(x, y, means)
    for seed in range(20):
        z = keep_means(images((1, 3, 8, 8), seed=2 + seed), y, means)
        assert ((x - p) * (z - p)).sum() <= 1e-6


@pytest.mark.parametrize("means", [Pooling(2), ChannelMean()], ids=name_of)
def test_the_gradient_is_that_of_the_projection(means):
    x = (1.2 * images((2, 3, 5, 5)) - 0.1).requires_grad_()
    y = means.reduce(images((2, 3, 5, 5), seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y: keep_means(x, y, means), (x, y), eps=1e-5, atol=1e-3
    )
