"""Bit-depth reduction: Xu, Evans, Qi, "Feature Squeezing", NDSS 2018, arXiv:1704.01155, section III-A."""

import torch
from torch import Tensor

from defend.noise import Noise
from defend.purifier import Card, Purifier


class BitDepth(Purifier):
    """x' = round(x (2^i - 1)) / (2^i - 1), i = ``bits``. Its derivative is zero almost everywhere, so the gradient passes straight by."""

    card = Card(paper="arXiv:1704.01155", gradient="identity", stochastic=False, idempotent=True)
    bits: int = 3  # the paper's i, for each channel

    def validate(self) -> None:
        self.require(1 <= self.bits <= 8, "bits", "1..8")

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        top = 2.0**self.bits - 1
        return torch.round(x * top) / top
