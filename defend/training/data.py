"""Where training batches come from: arrays in a new order at every epoch, or a stream of fresh images. Both keep no state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from defend.dataset import Dataset
from defend.noise import Noise

Batch = tuple[Tensor, Tensor]  # x float32 (b, c, h, w) in [0, 1], y (b,)


class Source(Protocol):
    """Images numbered 0, 1, 2... over the whole run; image k is the same whenever it is asked for."""

    @property
    def epoch(self) -> int:
        """How many images count as an epoch."""

    def batch(self, start: int, size: int, seed: int) -> Batch:
        """Images start ... start + size - 1 of the run."""

    def fingerprint(self) -> str:
        """Of the data: a resumed run must have the same."""

    def to(self, device: torch.device) -> Source: ...


@dataclass(frozen=True)
class Arrays:
    """x (n, c, h, w), float32 in [0, 1] or uint8 in 0..255, and y (n, ...)."""

    x: Tensor
    y: Tensor

    @property
    def epoch(self) -> int:
        return len(self.x)

    def batch(self, start: int, size: int, seed: int) -> Batch:
        rows = places(start, size, len(self.x), seed).to(self.x.device)
        x = self.x[rows]
        return x if x.is_floating_point() else x.float().div_(255), self.y[rows]

    def fingerprint(self) -> str:
        return _hash(self.x[:64], self.y, torch.tensor(self.x.shape))

    def to(self, device: torch.device) -> Arrays:
        return Arrays(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Stream:
    """Images without end: draw(noise) gives len(noise) of them, with labels, on the noise's device."""

    draw: Callable[[Noise], Batch]
    epoch: int  # images that count as an epoch
    device: str | torch.device = "cpu"

    def batch(self, start: int, size: int, seed: int) -> Batch:
        return self.draw(
            Noise.of(seed, torch.arange(start, start + size, device=self.device)).fork("stream")
        )

    def fingerprint(self) -> str:
        return _hash(*Stream(self.draw, self.epoch).batch(0, 16, 0), torch.tensor(self.epoch))

    def to(self, device: torch.device) -> Stream:
        return Stream(self.draw, self.epoch, device)


def training_source(dataset: Dataset) -> Source:
    """A stream where the data set has one, else all its training images."""
    n = dataset.count("train")
    if dataset.stream("train", Noise.of(0, torch.arange(1))) is None:
        return Arrays(*dataset.rows("train", 0, n))
    return Stream(lambda noise: _there(dataset.stream("train", noise)), n)


def places(start: int, size: int, n: int, seed: int) -> Tensor:
    """Rows (size,) for images `start`... of a run over n rows that are permuted anew at every epoch."""
    first, last = start // n, (start + size - 1) // n
    orders = [
        torch.randperm(n, generator=torch.Generator().manual_seed(_mixed(seed, epoch)))
        for epoch in range(first, last + 1)
    ]
    return torch.cat(orders)[start - first * n :][:size]


def crop(x: Tensor, pad: int, noise: Noise, flip: bool = False) -> Tensor:
    """Each image shifted by up to `pad` pixels over a black border and, with `flip`, mirrored half of the time:
    arXiv:1512.03385, section 4.2. x (b, c, h, w)."""
    b, c, h, w = x.shape
    u = noise.uniform(x.new_empty(b, 3))
    top, left = ((2 * pad + 1) * u[:, :2]).long().unbind(1)
    column = torch.arange(w, device=x.device).expand(b, w)
    column = torch.where((u[:, 2:] < 0.5) & flip, w - 1 - column, column)
    rows = (top[:, None] + torch.arange(h, device=x.device))[:, None, :, None]  # (b, 1, h, 1)
    columns = (left[:, None] + column)[:, None, None, :]  # (b, 1, 1, w)
    image = torch.arange(b, device=x.device).view(b, 1, 1, 1)
    return torch.nn.functional.pad(x, (pad,) * 4)[
        image, torch.arange(c, device=x.device).view(1, c, 1, 1), rows, columns
    ]


def _there(batch: Batch | None) -> Batch:
    if batch is None:
        raise RuntimeError(
            "a stream that ends: Dataset.stream returned None after it had given images"
        )
    return batch


def _mixed(*numbers: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(t.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
