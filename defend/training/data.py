"""Sources of training batches: arrays in a new order at every epoch, or a stream of fresh images.

Neither has a state: each batch is a function of the seed and the position in the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from defend.dataset import SPLITS, Dataset, Split
from defend.errors import BadParameter
from defend.noise import Noise

Batch = tuple[Tensor, Tensor]  # x float32 (b, c, h, w) in [0, 1], y (b,)
FINGERPRINT_IMAGES = 64  # images of an array that its fingerprint reads
FINGERPRINT_STREAM_IMAGES = 16  # images of a stream that its fingerprint reads


class Source(Protocol):
    """Images numbered 0, 1, 2... over the whole run; image k is the same in whatever batch."""

    @property
    def epoch(self) -> int:
        """Return how many images count as one epoch."""

    def batch(self, start: int, size: int, seed: int) -> Batch:
        """Return images `start` to `start + size - 1` of the run, with their labels."""

    def fingerprint(self) -> str:
        """Return a hash of the data; a resumed run must have the same."""

    def to(self, device: torch.device) -> Source:
        """Return the same source with its batches on `device`."""


@dataclass(frozen=True)
class Arrays:
    """Images in memory: x (n, c, h, w), float32 in [0, 1] or uint8 in 0..255, and y (n, ...)."""

    x: Tensor
    y: Tensor

    @property
    def epoch(self) -> int:
        return len(self.x)

    def batch(self, start: int, size: int, seed: int) -> Batch:
        rows = permuted_rows(start, size, len(self.x), seed).to(self.x.device)
        x = self.x[rows]
        if not x.is_floating_point():
            x = x.float().div_(255)
        return x, self.y[rows]

    def fingerprint(self) -> str:
        return _hash(self.x[:FINGERPRINT_IMAGES], self.y, torch.tensor(self.x.shape))

    def to(self, device: torch.device) -> Arrays:
        return Arrays(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Stream:
    """Images without end: draw(noise) returns len(noise) of them with labels, on noise's device."""

    draw: Callable[[Noise], Batch]
    epoch: int  # images that count as one epoch
    device: str | torch.device = "cpu"

    def batch(self, start: int, size: int, seed: int) -> Batch:
        numbers = torch.arange(start, start + size, device=self.device)
        return self.draw(Noise.of(seed, numbers).fork("stream"))

    def fingerprint(self) -> str:
        on_cpu = Stream(self.draw, self.epoch)  # so that the device does not change the hash
        batch = on_cpu.batch(0, FINGERPRINT_STREAM_IMAGES, 0)
        return _hash(*batch, torch.tensor(self.epoch))

    def to(self, device: torch.device) -> Stream:
        return Stream(self.draw, self.epoch, device)


@dataclass(frozen=True)
class Squares:
    """Random squares of the images of another source, as many for each as it has area for."""

    source: Source
    side: int  # of the squares, in pixels

    @property
    def epoch(self) -> int:
        height, width = self.source.batch(0, 1, 0)[0].shape[2:]
        return self.source.epoch * max(1, (height * width) // self.side**2)

    def batch(self, start: int, size: int, seed: int) -> Batch:
        x, y = self.source.batch(start, size, seed)
        numbers = torch.arange(start, start + size, device=x.device)
        return cut_squares(x, self.side, Noise.of(seed, numbers).fork("squares")), y

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()} in squares of {self.side}"

    def to(self, device: torch.device) -> Squares:
        return Squares(self.source.to(device), self.side)


def make_training_source(dataset: Dataset) -> Source:
    """Return the data set's training stream if it has one, otherwise all its training images."""
    n = dataset.count("train")
    if dataset.stream("train", Noise.of(0, torch.arange(1))) is None:
        return Arrays(*dataset.rows("train", 0, n))

    def draw(noise: Noise) -> Batch:
        batch = dataset.stream("train", noise)
        if batch is None:
            raise RuntimeError(
                f"{type(dataset).__name__}.stream: expected a batch, as at the first call, got"
                " None; return batches at every call or at none"
            )
        return batch

    return Stream(draw, n)


def choose_fitting_split(dataset: Dataset) -> Split:
    """Return the split on which a network that imitates a purifier is fitted.

    It is train, or val or test of a data set without it: an attacker may take any images, and those
    that are attacked make the imitation no worse where it counts.
    """
    return next(split for split in SPLITS if split in dataset.splits)


def fitting_images(dataset: Dataset, n: int, n_val: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return up to n images with their labels to fit on, and up to n_val to measure on.

    The latter are of val. Without train and val they are cut from the end of the one split: a
    tenth, or the image itself if there is one alone.
    """
    split = choose_fitting_split(dataset)
    if split == "train" and "val" in dataset.splits:
        n, n_val = min(n, dataset.count("train")), min(n_val, dataset.count("val"))
        return *dataset.rows("train", 0, n), *dataset.rows("val", 0, n_val)
    count = min([dataset.count(split), *dataset.size_changes(split)])
    n_val = max(1, min(n_val, count // 10))
    n = max(1, min(n, count - n_val))
    start = min(n, count - n_val)
    return *dataset.rows(split, 0, n), *dataset.rows(split, start, start + n_val)


def permuted_rows(start: int, size: int, n: int, seed: int) -> Tensor:
    """Return the rows (size,) of images `start`... of a run over n rows.

    Every epoch goes through the rows in another order.
    """
    first_epoch = start // n
    last_epoch = (start + size - 1) // n
    permutations = [_permutation(n, seed, epoch) for epoch in range(first_epoch, last_epoch + 1)]
    return torch.cat(permutations)[start - first_epoch * n :][:size]


def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    digest = hashlib.sha256(repr((seed, epoch)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randperm(n, generator=generator)


def cut_squares(x: Tensor, side: int, noise: Noise) -> Tensor:
    """Return one random square (b, c, side, side) of each image x (b, c, h, w).

    Raise BadParameter for images that are smaller than the squares.
    """
    b, _, h, w = x.shape
    if side > min(h, w):
        raise BadParameter(
            f"expected images of at least {side} x {side} pixels to cut squares from, got {h} x"
            f" {w}; use smaller squares"
        )
    u = noise.uniform(x.new_empty(b, 2))
    top, left = ((h - side + 1) * u[:, 0]).long(), ((w - side + 1) * u[:, 1]).long()
    corners = zip(top.tolist(), left.tolist(), strict=True)
    return torch.stack([t[:, i : i + side, j : j + side] for t, (i, j) in zip(x, corners)])


def random_crop(x: Tensor, pad: int, noise: Noise, flip: bool = False) -> Tensor:
    """Return images x (b, c, h, w), each shifted by up to `pad` pixels over a black border.

    With `flip`, each image is also mirrored with probability 1/2. arXiv:1512.03385, section 4.2.
    """
    b, c, h, w = x.shape
    u = noise.uniform(x.new_empty(b, 3))
    top, left = ((2 * pad + 1) * u[:, :2]).long().unbind(1)
    column = torch.arange(w, device=x.device).expand(b, w)
    column = torch.where((u[:, 2:] < 0.5) & flip, w - 1 - column, column)
    rows = (top[:, None] + torch.arange(h, device=x.device))[:, None, :, None]  # (b, 1, h, 1)
    columns = (left[:, None] + column)[:, None, None, :]  # (b, 1, 1, w)
    image = torch.arange(b, device=x.device).view(b, 1, 1, 1)
    channel = torch.arange(c, device=x.device).view(1, c, 1, 1)
    return F.pad(x, (pad, pad, pad, pad))[image, channel, rows, columns]


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(t.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
