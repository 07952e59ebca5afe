"""Noise that belongs to an image, not to its place in a batch.

A generator that a batch shares gives image 3 other noise if image 2 is dropped, if the batch is cut
elsewhere, or on another device. Here each number is a hash of an opaque key for each image and of a
counter, so that none of this matters and nothing is stored. The holder of a `Noise` can draw from
it, fork it and replay it, but cannot learn which image or which draw it belongs to.
"""

from __future__ import annotations

import hashlib
import math
from operator import index as index_of

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the step of SplitMix64's counter, as int64
# `>>` on int64 keeps the sign: after a shift by k, a mask with _LOW_BITS[k] clears the upper k
# bits.
_LOW_BITS = [2**64 - 1 >> k for k in range(64)]


def _wrap(n: int) -> int:
    """Return n modulo 2^64 as a signed 64-bit integer.

    Tensors wrap on overflow, as the algorithm needs, but Python's integers grow.
    """
    return (n + 2**63) % 2**64 - 2**63


def _mix_(z: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser to int64 values, in place.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    for shift, factor in (
        (30, 0xBF58476D1CE4E5B9 - 2**64),
        (27, 0x94D049BB133111EB - 2**64),
        (31, 1),
    ):
        z ^= (z >> shift).bitwise_and_(_LOW_BITS[shift])
        z *= factor
    return z


def _name_key(name: str) -> int:
    """Return 64 bits of the sha256 of a name, as a signed integer."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)


class Noise:
    """A stream of noise for each image of a batch.

    Each call of `normal` or `uniform` advances every stream.
    """

    def __init__(self, key: Tensor, calls: int = 0) -> None:
        """key: int64 (b,). calls: the number of earlier draws from these streams."""
        self._key = key
        self._first = self._calls = calls

    @classmethod
    def of(cls, seed: int, index: Tensor) -> Noise:
        """Return the streams of a seed (64 bits) for images, index int64 (b,): each image's number
        in its data set.
        """
        return cls(_mix_(torch.full_like(index, _wrap(index_of(seed))))).nth(index[:, None])

    def fork(self, name: str) -> Noise:
        """Return independent streams for the same images.

        The same name gives the same streams, so that the steps of a loop need numbers in their
        names.
        """
        return Noise(_mix_(self._key + _name_key(name)))

    def nth(self, number: Tensor) -> Noise:
        """Return n independent streams for each image, the streams of one image side by side.
        number: int64 (b, n).
        """
        return Noise(_mix_(self._key[:, None] + (number + 1) * _GOLDEN).flatten())

    def draw(self, k: int) -> Noise:
        """Return the k-th of the independent streams for each image, as `nth` numbers them."""
        return self.nth(torch.full_like(self._key, k)[:, None])

    def copies(self, n: int) -> Noise:
        """Return n independent streams for each image, the streams of one image side by side: for
        restarts.
        """
        numbers = torch.arange(n, device=self._key.device).expand(len(self), n)
        return self.fork("copies").nth(numbers)

    def again(self) -> Noise:
        """Return the same streams from where this object began: for a surrogate, or for a pass that
        is computed twice.
        """
        return Noise(self._key, self._first)

    def from_here(self) -> Noise:
        """Return the same streams, which begin where these are now: `again` goes back to here."""
        return Noise(self._key, self._calls)

    def skip_to(self, other: Noise) -> None:
        """Advance these streams to where the other, which began at the same place, is now.

        They never go back.
        """
        self._calls = max(self._calls, other._calls)

    def take(self, rows: Tensor | slice) -> Noise:
        """Return the streams of some of the images, which continue where these streams are now."""
        return Noise(self._key[rows], self._calls)

    def split(self, n: int) -> list[Noise]:
        """Return the streams in groups of at most n images, as Tensor.split cuts a batch."""
        return [Noise(key, self._calls) for key in self._key.split(n)]

    @property
    def device(self) -> torch.device:
        """The device on which noise is made."""
        return self._key.device

    def __len__(self) -> int:
        return len(self._key)

    def _bits(self, n: int) -> Tensor:
        """Return n integers of 64 random bits for each image: int64 (b, n)."""
        self._calls += 1
        key = _mix_(self._key + _wrap(self._calls * _GOLDEN))
        return _mix_(key[:, None] + torch.arange(1, n + 1, device=key.device).mul_(_GOLDEN))

    def uniform(self, like: Tensor) -> Tensor:
        """Return draws from U[0, 1) in the shape and dtype of `like` (b, ...)."""
        n = math.prod(like.shape[1:])
        wide_dtype = torch.promote_types(like.dtype, torch.float32)
        bits = self._bits((n + 1) // 2)
        integers = torch.cat([bits >> 8, bits >> 40], 1).bitwise_and_(2**24 - 1)[:, :n]
        values = integers.to(wide_dtype).mul_(2.0**-24).to(like.dtype)
        # A narrower dtype may round up to 1, which the interval excludes.
        largest = 1 - torch.finfo(like.dtype).eps / 2
        return values.clamp_(max=largest).reshape(like.shape)

    def normal(self, like: Tensor) -> Tensor:
        """Return draws from N(0, 1) in the shape and dtype of `like` (b, ...), by Box and Muller's
        transform.
        """
        n = math.prod(like.shape[1:])
        wide_dtype = torch.promote_types(like.dtype, torch.float32)
        bits = self._bits((n + 1) // 2)
        upper = ((bits >> 32) & (2**32 - 1)).add_(1).to(wide_dtype)
        lower = (bits & (2**32 - 1)).to(wide_dtype)
        radius = upper.mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = lower.mul_(2 * math.pi * 2.0**-32)
        values = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :n]
        return values.reshape(like.shape).to(like.dtype)
