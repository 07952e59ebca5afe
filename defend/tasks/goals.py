"""The goals of an attacker of a face recogniser: dodging and impersonation.

Dodging means not to be recognised, impersonation to pass for another person: Sharif, Bhagavatula,
Bauer, Reiter, "Accessorize to a Crime", CCS 2016, section 3.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor

from defend.tasks.task import Objective, Task

Goal = Literal["dodging", "impersonation"]
GOALS: tuple[Goal, ...] = ("dodging", "impersonation")


class GoalTask(Task):
    """The base of tasks at which the attacker dodges, or impersonates another person."""

    default_attacks = ("fgsm", "pgd")
    goal: Goal = "dodging"

    def validate(self) -> None:
        """Raise BadParameter for an unknown goal."""
        self.require(self.goal in GOALS, "goal", " or ".join(GOALS))

    @property
    def is_targeted(self) -> bool:
        """Return True if the attacker impersonates."""
        return self.goal == "impersonation"

    @property
    def objectives(self) -> frozenset[Objective]:
        """Return the objectives of attacks; those on labels know no target to impersonate."""
        return frozenset(("task",)) if self.is_targeted else frozenset(("task", "label"))

    def reference(self, x: Tensor, y: Tensor, classes: int) -> Tensor:
        """Return the labels (b,), or labels and targets (b, 2) for impersonation."""
        return with_targets(x, y, classes) if self.is_targeted else y


def with_targets(x: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return (b, 2): each label y (b,), and the identity that the image is to pass for.

    The target is another identity, chosen by the hash of the image alone, so that it is the same
    for every defense, batch and machine.
    """
    return torch.stack([y, choose_targets(x, y, classes)], 1)


def choose_targets(x: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return for each image (b, c, h, w) an identity other than y (b,): (b,)."""
    hashes = [hashlib.blake2b(_bytes(image), digest_size=6).digest() for image in x]
    numbers = [int.from_bytes(digest, "big") for digest in hashes]
    steps = torch.tensor([1 + number % (classes - 1) for number in numbers], device=y.device)
    return (y + steps) % classes


def _bytes(image: Tensor) -> bytes:
    """Return the pixels on the grid of 256 levels, which no rounding of floats changes."""
    return (image * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes()
