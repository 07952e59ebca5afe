"""Checks of a purifier's output: its shape and range, its randomness, and its independence of other
images. Each check takes one purifier.
"""

from __future__ import annotations

import copy

import torch

from defend.purifier import Purifier
from defend.testing.defense_setup import BATCH, options_set, purify
from defend.testing.edge_images import edge_images
from defend.testing.rng import global_states
from defend.testing.runner import NotApplicable, depends_on_weights, reads_only


@depends_on_weights
@reads_only
def check_keeps_shape_dtype_device(p: Purifier) -> None:
    """Fail if the output has another shape, dtype or device than the input."""
    x = p.example(BATCH)
    y = purify(p, x)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device), (
        f"expected {tuple(x.shape)} {x.dtype} on {x.device}, "
        f"got {tuple(y.shape)} {y.dtype} on {y.device}"
    )


@reads_only
def check_takes_every_number_of_channels_on_its_card(p: Purifier) -> None:
    """Fail if the purifier refuses a number of channels that its card names."""
    x = p.example(BATCH)
    assert x.shape[1] in p.card.channels, (
        f"expected examples of {p.card.channels} channels as the card says, got {x.shape[1]}"
    )
    for channels in p.card.channels:
        images = x.repeat(1, channels, 1, 1)[:, :channels]
        y = purify(p, images)
        assert y.shape == images.shape, f"expected {tuple(images.shape)}, got {tuple(y.shape)}"


@depends_on_weights
@reads_only
def check_stays_in_pixel_range(p: Purifier) -> None:
    """Fail if a pixel leaves [0, 1]."""
    for x in (p.example(BATCH), edge_images(p.example(1))):
        y = purify(p, x)
        assert y.min() >= 0 and y.max() <= 1, (
            f"expected pixels in [0, 1], got {y.min():.4f} to {y.max():.4f}; clamp the output"
        )


@depends_on_weights
@reads_only
def check_finite_on_edge_images(p: Purifier) -> None:
    """Fail if a pixel is NaN or infinite."""
    assert purify(p, edge_images(p.example(1))).isfinite().all(), (
        "expected finite pixels, got NaN or inf for a black, white, checkerboard or one-hot image"
    )


@reads_only
def check_leaves_input_alone(p: Purifier) -> None:
    """Fail if the purifier writes into its input."""
    x = p.example(BATCH)
    before = x.clone()
    purify(p, x)
    assert torch.equal(x, before), "wrote into its input, which others share; work on a copy"


@reads_only
def check_accepts_one_image_and_none(p: Purifier) -> None:
    """Fail if a batch of one image, or of none, changes its shape."""
    for n in (1, 0):
        x = p.example(n)
        y = purify(p, x)
        assert y.shape == x.shape, (
            f"expected {tuple(x.shape)} for a batch of {n}, got {tuple(y.shape)}"
        )


@reads_only
def check_seed_repeats(p: Purifier) -> None:
    """Fail if the same noise gives two outputs."""
    assert torch.equal(purify(p, p.example(BATCH)), purify(p, p.example(BATCH))), (
        "the same noise gives another output; draw all randomness from `noise`"
    )


def check_remembers_nothing(p: Purifier) -> None:
    """Fail if an earlier image changes the output for a later one.

    The last image of an attack is near the clean image, which the purifier has purified before. A
    purifier with a memory would answer with the clean image.
    """
    x, without_history = p.example(BATCH), copy.deepcopy(p)
    near = (x + 0.01).clamp(0, 1)
    purify(p, x)
    assert torch.equal(purify(p, near), purify(without_history, near)), (
        "earlier images change the output for later ones; keep no state between calls"
    )


def check_leaves_global_rng_alone(p: Purifier) -> None:
    """Fail if the forward or the backward pass moves a global random generator."""
    before = global_states()
    purify(p, p.example(BATCH))
    purify(p, p.example(BATCH).requires_grad_()).sum().backward()
    assert global_states() == before, (
        "moved the global random state of torch, numpy or random; draw from `noise`"
    )


@reads_only
def check_stochastic_claim(p: Purifier) -> None:
    """Fail if two draws differ and the card says deterministic, or the other way round."""
    x = p.example(BATCH)
    differs = not torch.equal(purify(p, x, draw=0), purify(p, x, draw=1))
    assert differs == p.card.stochastic, (
        f"the card says stochastic={p.card.stochastic}, "
        f"but two draws {'differ' if differs else 'agree'}; correct the card"
    )


@reads_only
def check_no_seed_means_fresh_noise(p: Purifier) -> None:
    """Fail if a stochastic purifier without a seed repeats itself, or one with a seed does not."""
    if not p.card.stochastic:
        raise NotApplicable("the card says stochastic=False")
    x = p.example(BATCH)
    with options_set(p, seed=None):
        assert not torch.equal(p.forward(x)[0], p.forward(x)[0]), (
            "two calls with seed=None agree; a fixed seed is a weaker defense, so draw fresh noise"
        )
    with options_set(p, seed=0):
        assert torch.equal(p.forward(x)[0], p.forward(x)[0]), (
            "two calls with seed=0 differ; draw all randomness from `noise`"
        )


@reads_only
def check_batch_mates_do_not_matter(p: Purifier) -> None:
    """Fail if an image alone is purified in another way than in a batch."""
    x, index = p.example(BATCH), torch.arange(BATCH)
    alone = torch.cat([purify(p, x[i : i + 1], index[i : i + 1]) for i in range(BATCH)])
    assert torch.allclose(purify(p, x, index), alone, atol=1e-5), (
        "an image's output, or its noise, depends on the other images of its batch"
    )


@reads_only
def check_order_does_not_matter(p: Purifier) -> None:
    """Fail if another order of the batch changes more than the order of the output."""
    x, permutation = p.example(BATCH), torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = purify(p, x[permutation], permutation)
    assert torch.allclose(purify(p, x)[permutation], permuted, atol=1e-5), (
        "an image's output, or its noise, depends on its place in the batch"
    )


@reads_only
def check_memory_layout_does_not_matter(p: Purifier) -> None:
    """Fail if images in channels_last memory get another output."""
    x = p.example(BATCH)
    channels_last = purify(p, x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(purify(p, x), channels_last, atol=1e-5), (
        "the same images in channels_last memory get another output"
    )


@depends_on_weights
@reads_only
def check_idempotent_claim(p: Purifier) -> None:
    """Fail if the card says idempotent, and a second purification changes the image."""
    if not p.card.idempotent:
        raise NotApplicable("the card does not say idempotent")
    once = purify(p, p.example(BATCH))
    assert torch.allclose(purify(p, once), once, atol=1e-5), (
        "the card says idempotent=True, but purifying twice differs from once; correct the card"
    )
