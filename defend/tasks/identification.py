"""Identification in a closed set: which of the enrolled people is it?

The scores of the people are the classifier's logits, and the first rank is the person.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from defend.losses import cross_entropy
from defend.stats import interval
from defend.tasks.goals import GoalTask
from defend.tasks.task import Arrays, Deployed, Measure, Summary


class Identification(GoalTask):
    """Score 1 for each image at which the attacker failed.

    With goal=dodging the first rank of such an image is the right person. With goal=impersonation
    its first rank is anyone but the person that it is to pass for (`with_targets`). Dodging
    attackers climb the cross entropy of the right person, impersonators descend that of their
    target.
    """

    name = "identification"
    may_drop = True

    @property
    def score_means(self) -> str:
        """Return what a share counts."""
        return "not taken for the target" if self.is_targeted else "identified, first rank"

    @property
    def measured(self) -> Mapping[str, Measure]:
        """Return what impersonation is measured by beside its score: is the right person first?"""
        return _RANK_1 if self.is_targeted else {}

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return the cross entropy of the right person, or minus that of the target: (b,)."""
        if self.is_targeted:
            return -cross_entropy(output, reference[:, 1])
        return cross_entropy(output, reference)

    def is_broken(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return True for each image that dodges, or that is taken for its target: (b,)."""
        first = output.argmax(1)
        return first == reference[:, 1] if self.is_targeted else first != reference

    def score(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return 1 where the attacker failed, and 0 where the goal is reached: (b,)."""
        return (~self.is_broken(output, reference)).to(torch.uint8)

    def under_attack(self, score: Tensor, clean: Tensor) -> Tensor:
        """Return the scores, of which an image that is lost without an attack gets 0 under all."""
        return score & clean

    def details(self, deployed: Deployed) -> dict[str, Tensor]:
        """Return whether the right person is first, for impersonation."""
        if not self.is_targeted:
            return {}
        is_right = deployed.output.argmax(1) == deployed.reference[:, 0]
        return {"rank_1": is_right.to(torch.uint8)}

    def measure(self, attacked: Arrays, clean: Arrays, seed: int) -> dict[str, Summary]:
        """Return rank-1 accuracy beside the impersonations, under attack and clean."""
        if not self.is_targeted:
            return {}
        return {
            "rank_1": _share(attacked["rank_1"], seed),
            "clean_rank_1": _share(clean["rank_1"], seed),
        }


_RANK_1: Mapping[str, Measure] = {
    "rank_1": Measure(heading="identified", unit="share", higher_is_better=True),
    "clean_rank_1": Measure(heading="identified", unit="share", higher_is_better=True, clean=True),
}


def _share(outcomes: np.ndarray, seed: int) -> Summary:
    low, high = interval(outcomes, seed)
    return Summary(float(outcomes.mean()), low, high)
