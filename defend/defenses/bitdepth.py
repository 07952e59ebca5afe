"""Bit-depth reduction: Xu, Evans, Qi, "Feature Squeezing", NDSS 2018, arXiv:1704.01155, sec. III-A.

Symbols of the paper and their names here: i is ``bits``, 2^i - 1 is ``max_level``.
"""

from torch import Tensor

from defend.gradients import relax, soft_round
from defend.noise import Noise
from defend.purifier import Card, Purifier


class BitDepth(Purifier):
    """Compute x' = round(x (2^i - 1)) / (2^i - 1), with i = ``bits``.

    The derivative is zero almost everywhere, so the declared gradient is the identity (BPDA). The
    temperature of the relaxation is in distances between two levels.
    """

    card = Card(paper="arXiv:1704.01155", gradient="identity", stochastic=False, idempotent=True)
    bits: int = 3  # the paper's i: bits for each channel

    def validate(self) -> None:
        """Raise BadParameter if ``bits`` is outside 1..8."""
        self.require(1 <= self.bits <= 8, "bits", "1..8")

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Return x (b, c, h, w) rounded to 2^bits levels."""
        max_level = 2.0**self.bits - 1
        return (x * max_level).round() / max_level

    def relaxed(self, x: Tensor, noise: Noise, temperature: float) -> Tensor:
        """Return what `purify` returns, with the slope of a smooth staircase."""
        max_level = 2.0**self.bits - 1
        levels = x * max_level
        return relax(soft_round(levels, temperature), levels.round()) / max_level
