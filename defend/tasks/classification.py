"""Classification: the attacker wants a wrong class, and each image is right or wrong.

Right or wrong has Wilson's interval and McNemar's test; over several draws it is the bootstrap and
a permutation test.
"""

from __future__ import annotations

import torch
from torch import Tensor

from defend.losses import cross_entropy
from defend.tasks.task import Task


class Classification(Task):
    """The score is 1 for a right image and 0 for a wrong one; attackers climb the cross entropy."""

    name = "classification"
    may_drop = True
    default_attacks = ("fgsm", "pgd")
    has_claims = True

    @property
    def score_means(self) -> str:
        """Return what a share counts."""
        return "right"

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return the cross entropy of logits (b, classes) and labels (b,): (b,)."""
        return cross_entropy(output, reference)

    def score(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return 1 for each right image and 0 for each wrong one. output (b, classes) -> (b,)."""
        return (output.argmax(1) == reference).to(torch.uint8)

    def is_broken(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return True for each image (b,) of another class than its label."""
        return output.argmax(1) != reference

    def under_attack(self, score: Tensor, clean: Tensor) -> Tensor:
        """Return the scores, of which an image that is wrong without an attack gets 0 under all."""
        return score & clean


CLASSIFICATION = Classification()
