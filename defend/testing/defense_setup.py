"""The images, the classifier and the measurements that the checks of purifiers share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from defend.chain import Chain
from defend.noise import Noise
from defend.purifier import Purifier

BATCH = 6  # images
CLASSES = 10


def purify(p: Purifier, x: Tensor, index: Tensor | None = None, *, draw: int = 0) -> Tensor:
    """Return x (b, c, h, w) purified with the noise of seed 0.

    index: the number of each image (b,), on which its noise depends; by default its place.
    """
    index = torch.arange(len(x)) if index is None else index
    return p.purified(x, Noise.of(0, index).draw(draw))


def random_like(x: Tensor, seed: int) -> Tensor:
    """Return normal random numbers in the shape and dtype of x."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def input_gradient(p: Purifier, x: Tensor, rows: slice = slice(None)) -> Tensor:
    """Return the gradient of a random projection of the output images `rows`, in the shape of x."""
    x = x.clone().requires_grad_()
    y = purify(p, x)
    assert y.requires_grad, (
        "expected an output with a gradient, got one that is detached from the input; "
        "do not detach, or declare gradient='identity'"
    )
    return torch.autograd.grad((y * random_like(y, 1))[rows].sum(), x)[0]


@contextmanager
def options_set(p: Purifier, **options: object) -> Iterator[None]:
    """Set fields that say how a purifier runs (seed, max_batch...), and restore them afterwards."""
    before = {name: getattr(p, name) for name in options}
    try:
        for name, value in options.items():
            setattr(p, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(p, name, value)


@contextmanager
def moved_to(p: Purifier, device: str) -> Iterator[None]:
    """Move a purifier to a device, and back afterwards."""
    before = p.device
    try:
        p.move(device)
        yield
    finally:
        p.move(before)


def linear_classifier(p: Purifier) -> nn.Module:
    """Return a linear network with ten classes for the purifier's own images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(p.example(1).numel(), CLASSES))


def classifier_in_art(p: Purifier) -> PyTorchClassifier:
    """Return ART's classifier of the linear network with the purifier in front of it."""
    return PyTorchClassifier(
        model=linear_classifier(p),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(p.example(1).shape[1:]),
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        preprocessing_defences=p,
        preprocessing=None,
        device_type="cpu",
    )


def one_hot_labels(n: int) -> np.ndarray:
    """Return n one-hot labels, the classes in turn: float32 (n, 10)."""
    return np.eye(CLASSES, dtype=np.float32)[np.arange(n) % CLASSES]


def with_members(p: Purifier) -> tuple[Purifier, ...]:
    """Return the purifier, and the members if it is a chain: each bounds its own memory."""
    return (p, *p.members) if isinstance(p, Chain) else (p,)


@dataclass
class CountingPurify:
    """`purify` of a purifier that also records the number of images of each call."""

    original: Callable[[Tensor, Noise], Tensor]
    batch_sizes: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        self.batch_sizes.append(len(x))
        return self.original(x, noise)


def count_batch_sizes(
    p: Purifier, member: int, max_batch: int
) -> tuple[Purifier, Purifier, list[int]]:
    """Return a copy of the purifier; the member of it (by its place in `with_members`) that got
    this max_batch; and a list that grows by the number of images at each call of that member's
    `purify`.
    """
    copied = copy.deepcopy(p)
    bounded = with_members(copied)[member]
    bounded.max_batch = max_batch
    counting = CountingPurify(bounded.purify)
    object.__setattr__(bounded, "purify", counting)
    return copied, bounded, counting.batch_sizes
