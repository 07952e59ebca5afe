"""How far a search by queries came: accuracy along the queries, and whether it still falls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defend.stats import per_cluster
from defend.unit_files import Unit

NOTE = "note_wrong_after"  # int64 (b,): queries until the image was first wrong, -1 for never
MARKS = (100, 1000, 5000)
LATE = 0.8  # the last fifth of the queries begins here
LEAST_LOSS = 0.005  # half a point of accuracy, below which a search counts as converged


@dataclass(frozen=True)
class QueryCurve:
    """Accuracy after so many queries, from when each image was first wrong."""

    clean: Tensor  # (n,): the share of right clean draws
    wrong_after: Tensor  # (n,): queries, -1 for never
    queries: int | None  # that the attack makes
    clusters: NDArray[np.int64] | None = None  # (n,): which images show the same thing

    @classmethod
    def of_units(
        cls,
        units: Sequence[Unit],
        queries: int | None,
        clusters: NDArray[np.int64] | None = None,
    ) -> QueryCurve | None:
        """Return the curve of a cell; None where the attack says nothing of its queries."""
        if not units:
            return None
        for unit in units:
            if NOTE not in unit.tensors or unit.tensors[NOTE].ndim != 1:
                return None
        clean = torch.cat([unit.tensors["clean_score"] for unit in units])
        wrong_after = torch.cat([unit.tensors[NOTE] for unit in units])
        return cls(clean.double().mean(1), wrong_after, queries, clusters)

    def accuracy(self, queries: int) -> float:
        """Return the accuracy after so many queries."""
        is_right = (self.wrong_after < 0) | (self.wrong_after > queries)
        return float(per_cluster(self.clean * is_right, self.clusters).mean())

    def accuracy_at_marks(self) -> dict[str, float | None]:
        """Return accuracies as {"100": ..., "1000": ..., "5000": ...}; None beyond the budget."""
        accuracies: dict[str, float | None] = {}
        for mark in MARKS:
            is_reached = self.queries is None or mark <= self.queries
            accuracies[str(mark)] = self.accuracy(mark) if is_reached else None
        return accuracies

    def accuracy_lost_late(self) -> float:
        """Return how far accuracy fell in the last fifth of the queries; 0 below half a point."""
        if self.queries is None:
            return 0.0
        lost = self.accuracy(int(LATE * self.queries)) - self.accuracy(self.queries)
        return lost if lost >= LEAST_LOSS - 1e-9 else 0.0
