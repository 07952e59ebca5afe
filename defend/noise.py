"""Noise that belongs to an image, not to its place in a batch.

A generator shared by a batch gives image 3 other noise when image 2 is dropped, when the batch is cut elsewhere, or on another
device. Here each number is a hash of an opaque key for each image and a counter, so none of that matters, and nothing is stored.
Whoever holds `Noise` can draw from it, fork it and replay it, but cannot learn which image or which draw it is.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as int64
_LOW = [
    2**64 - 1 >> k for k in range(64)
]  # `>>` on int64 keeps the sign: mask with _LOW[k] after a shift by k


def _wrap(n: int) -> int:
    """n modulo 2^64 as a signed 64-bit integer: tensors wrap on overflow, as the algorithm needs, but Python's integers grow."""
    return (n + 2**63) % 2**64 - 2**63


def _mix_(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014."""
    for shift, factor in (
        (30, 0xBF58476D1CE4E5B9 - 2**64),
        (27, 0x94D049BB133111EB - 2**64),
        (31, 1),
    ):
        z ^= (z >> shift).bitwise_and_(_LOW[shift])
        z *= factor
    return z


class Noise:
    """A stream of noise for each image of a batch. Each call of `normal` or `uniform` moves every stream on."""

    def __init__(self, key: Tensor, calls: int = 0) -> None:
        self._key = key  # int64 (b,)
        self._first = self._calls = calls

    @classmethod
    def of(cls, seed: int, index: Tensor) -> Noise:
        """seed: 64 bits. index: int64 (b,), each image's number in its data set."""
        return cls(_mix_(torch.full_like(index, _wrap(seed)))).nth(index[:, None])

    def fork(self, name: str) -> Noise:
        """Independent streams for the same images. The same name gives the same streams: number the steps of a loop."""
        return Noise(
            _mix_(
                self._key
                + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)
            )
        )

    def nth(self, number: Tensor) -> Noise:
        """number: int64 (b, n): n independent streams for each image, those of one image together."""
        return Noise(_mix_(self._key[:, None] + (number + 1) * _GOLDEN).flatten())

    def draw(self, k: int) -> Noise:
        """The k-th of the independent streams for each image, as `nth` numbers them."""
        return self.nth(torch.full_like(self._key, k)[:, None])

    def copies(self, n: int) -> Noise:
        """n independent streams for each image, those of one image together: for restarts."""
        return self.fork("copies").nth(
            torch.arange(n, device=self._key.device).expand(len(self), n)
        )

    def again(self) -> Noise:
        """The same streams from where this object began: for a surrogate, or for a pass that is computed twice."""
        return Noise(self._key, self._first)

    def take(self, rows: Tensor | slice) -> Noise:
        """For fewer images, going on where this stands."""
        return Noise(self._key[rows], self._calls)

    def split(self, n: int) -> list[Noise]:
        return [Noise(key, self._calls) for key in self._key.split(n)]

    @property
    def device(self) -> torch.device:
        return self._key.device

    def __len__(self) -> int:
        return len(self._key)

    def _bits(self, n: int) -> Tensor:
        """n integers of 64 random bits for each image: int64 (b, n)."""
        self._calls += 1
        key = _mix_(self._key + _wrap(self._calls * _GOLDEN))
        return _mix_(key[:, None] + torch.arange(1, n + 1, device=key.device).mul_(_GOLDEN))

    def uniform(self, like: Tensor) -> Tensor:
        """U[0, 1) in the shape and dtype of `like` (b, ...)."""
        n, wide = math.prod(like.shape[1:]), torch.promote_types(like.dtype, torch.float32)
        bits = self._bits((n + 1) // 2)
        halves = torch.cat([bits >> 8, bits >> 40], 1).bitwise_and_(2**24 - 1)[:, :n]
        return (
            halves.to(wide)
            .mul_(2.0**-24)
            .to(like.dtype)
            .clamp_(max=1 - torch.finfo(like.dtype).eps / 2)
            .reshape(like.shape)
        )

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) in the shape and dtype of `like` (b, ...), by Box and Muller's transform."""
        n, wide = math.prod(like.shape[1:]), torch.promote_types(like.dtype, torch.float32)
        bits = self._bits((n + 1) // 2)
        radius = (
            ((bits >> 32) & (2**32 - 1)).add_(1).to(wide).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        )
        angle = (bits & (2**32 - 1)).to(wide).mul_(2 * math.pi * 2.0**-32)
        return (
            torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :n]
            .reshape(like.shape)
            .to(like.dtype)
        )
