"""Checks of a classifier by itself, so that no purifier is blamed for what the network does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from defend.errors import BrokenPurifier, Mismatch

SINGLE_IMAGES = 8  # images that are classified one by one, too
TOLERANCE = 1e-2  # of the largest logit: far above what rounding in another batch changes


@contextmanager
def blame_network_first(network: nn.Module, images: Callable[[], Tensor]) -> Iterator[None]:
    """Raise Mismatch in place of BrokenPurifier if the network itself is the cause.

    images: returns purified images; it is called only after an error.
    """
    try:
        yield
    except BrokenPurifier:
        check_network(network, images())
        raise


def check_network(network: nn.Module, images: Tensor) -> None:
    """Raise Mismatch unless logits of finite images are finite and depend on the images alone.

    They must be the same at a second call, and where gradients are enabled.
    """
    if not len(images) or not images.isfinite().all():
        return
    with torch.no_grad():
        first, second = network(images), network(images)
    if not first.isfinite().all():
        raise Mismatch(
            f"classifier {_name(network)}: expected finite logits, got some that are not for finite"
            " images; mend the network or its weights"
        )
    if _any_differ(first, second):
        raise Mismatch(
            f"classifier {_name(network)}: two calls give the same images other logits; draw"
            " nothing in forward()"
        )
    with torch.inference_mode(False), torch.enable_grad():
        with_gradient = network(images.detach().clone().requires_grad_()).detach()
    if _any_differ(first, with_gradient):
        raise Mismatch(
            f"classifier {_name(network)}: logits change when gradients are enabled; forward() must"
            " not depend on requires_grad"
        )


def check_classified_alone(network: nn.Module, images: Tensor) -> None:
    """Raise Mismatch if most of the first images get other logits alone than in their batch.

    Attacks drop images, and score them beside others.
    """
    few = images[:SINGLE_IMAGES]
    with torch.no_grad():
        pairs = zip(network(few).split(1), few.split(1), strict=True)
        changed = sum(_any_differ(together, network(image)) for together, image in pairs)
    if 2 * changed > len(few):
        raise Mismatch(
            f"classifier {_name(network)}: {changed} of {len(few)} images get other logits alone"
            " than in their batch; let each be classified by itself, without statistics of its"
            " batch, as of a batch norm without running means"
        )


def _any_differ(first: Tensor, second: Tensor) -> bool:
    """Return True if logits differ by more than rounding changes."""
    scale = max(1.0, float(first.abs().max()))
    return not torch.allclose(first, second, rtol=0, atol=TOLERANCE * scale)


def _name(network: nn.Module) -> str:
    """Return how messages name a network: as the classifier that holds it."""
    return getattr(network, "label", "") or type(network).__name__
