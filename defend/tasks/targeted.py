"""A targeted attack on a classifier: the attacker wants one class of his own choice."""

from __future__ import annotations

import torch
from torch import Tensor

from defend.losses import cross_entropy
from defend.tasks.classification import Classification


class Targeted(Classification):
    """What an attack with targeted=true climbs; the reference is the target class of each image.

    No bench scores it: robust accuracy stays the share of images that are right.
    """

    def loss(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return minus the cross entropy of logits (b, classes) and target classes (b,): (b,)."""
        return -cross_entropy(output, reference)

    def score(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return 0 for each image (b,) that is classified as its target, 1 for others."""
        return (output.argmax(1) != reference).to(torch.uint8)

    def is_broken(self, output: Tensor, reference: Tensor) -> Tensor:
        """Return True for each image (b,) that is classified as its target."""
        return output.argmax(1) == reference


TARGETED = Targeted()


def next_class(y: Tensor, classes: int) -> Tensor:
    """Return the target of each image of label y (b,): the next class, after the last the first."""
    return (y + 1) % classes
