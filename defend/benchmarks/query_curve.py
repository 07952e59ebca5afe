"""How far a search by queries came: accuracy after so many of them, and does it still fall?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from defend.benchmarks.units import Unit

NOTE = "note_wrong_after"  # int64 (b,): queries after which the image was first wrong, -1 where it never was
MARKS = (100, 1000, 5000)
LAST = 0.8  # the last fifth of the queries
STILL_FALLS = 0.005  # by at least half a point of accuracy there


def accuracy_after(units: Sequence[Unit], queries: int | None) -> dict[str, float | None] | None:
    """Over n, as {"100": .., "1000": .., "5000": ..}; None where the attack makes fewer queries, or says nothing of them."""
    if (found := _noted(units)) is None:
        return None
    return {
        str(mark): _standing(*found, mark) if queries is None or mark <= queries else None
        for mark in MARKS
    }


def still_falls(units: Sequence[Unit], queries: int | None) -> float:
    """By how much the accuracy fell in the last fifth of the queries; 0 where that is less than half a point."""
    found = _noted(units)
    if found is None or queries is None:
        return 0.0
    fell = _standing(*found, int(LAST * queries)) - _standing(*found, queries)
    return fell if fell >= STILL_FALLS - 1e-9 else 0.0


def _noted(units: Sequence[Unit]) -> tuple[Tensor, Tensor] | None:
    """(the share of right clean draws (n,), when it was first wrong (n,))."""
    if not units or any(NOTE not in u.tensors or u.tensors[NOTE].ndim != 1 for u in units):
        return None
    return torch.cat([u.tensors["clean_score"] for u in units]).double().mean(1), torch.cat(
        [u.tensors[NOTE] for u in units]
    )


def _standing(clean: Tensor, wrong_after: Tensor, queries: int) -> float:
    return float((clean * ((wrong_after < 0) | (wrong_after > queries))).mean())
