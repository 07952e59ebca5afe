"""Classification: the attacker wants a wrong class, and each image is right or wrong.

A task says what an attack climbs, what is measured for each image, and how these scores become
one number with an interval and a comparison. Other tasks (reconstruction, identification) give
the same functions other meanings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from defend.losses import cross_entropy
from defend.stats import Comparison, compare, interval


@dataclass(frozen=True)
class Summary:
    """One number over all images with its 95 % interval, in [0, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Classification:
    """Right or wrong: Wilson's interval, McNemar's test; over several draws bootstrap and
    permutation."""

    name: str = "classification"
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy  # what attackers climb: (b,)
    higher_is_better: bool = True  # for the defender

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return 1 for each right image and 0 for each wrong one. logits (b, classes) -> (b,)."""
        return (logits.argmax(1) == y).to(torch.uint8)

    def summarise(self, scores: ArrayLike, seed: int = 0) -> Summary:
        """Return the accuracy over scores (n, draws) with its interval over images.

        seed: of the bootstrap, which is used for more than one draw.
        """
        scores = np.asarray(scores, np.float64)
        low, high = interval(scores, seed)
        value = torch.from_numpy(scores).mean(1).mean().item()
        return Summary(value=value, low=low, high=high)

    def compare(self, a: ArrayLike, b: ArrayLike, seed: int = 0) -> Comparison:
        """Compare scores (n, draws) of two pipelines on the same images."""
        return compare(a, b, seed)


CLASSIFICATION = Classification()
