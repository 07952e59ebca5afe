"""The names of what a persistent search tries: how it is differentiated, what it climbs, and where
it starts.

A search notes for each image the numbers of these names, which a unit file can hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from defend.threat_models import RELAXED_GRADIENTS

DECLARED = "declared"
IDENTITY = "identity"
AUTOGRAD = "autograd"
AUTOGRAD_PAST = "autograd past replacements"
# Through which the purifier is differentiated. Append only: unit files hold the positions.
GRADIENTS = (DECLARED, *RELAXED_GRADIENTS, IDENTITY, AUTOGRAD, "none", AUTOGRAD_PAST)
# What is climbed; the last is a random search, which needs no gradient.
LOSSES = ("margin", "cross entropy", "dlr", "targets", "averaged margin", "square")
# A random point, the best point so far, or a point that breaks the bare classifier.
STARTS = ("random", "best", "oblivious")
NEVER = -1  # instead of a round: the image was not broken
# Why a search ended, the best reason first: every image was broken, so many rounds broke next to
# nothing, or all rounds were made while images still fell. Unit files hold the positions.
NOTHING_STANDS, IDLE, ALL_ROUNDS = ENDS = ("nothing stands", "idle", "rounds")


@dataclass(frozen=True)
class Move:
    """One way to attack, as three names."""

    gradient: str
    loss: str
    start: str

    def numbers(self) -> tuple[int, int, int]:
        """Return the positions of its names."""
        return (
            GRADIENTS.index(self.gradient),
            LOSSES.index(self.loss),
            STARTS.index(self.start),
        )

    @classmethod
    def of_numbers(cls, gradient: int, loss: int, start: int) -> Move:
        """Return the move whose names have these positions."""
        return cls(GRADIENTS[gradient], LOSSES[loss], STARTS[start])

    def __str__(self) -> str:
        return f"{self.loss} through {self.gradient} from {self.start}"
