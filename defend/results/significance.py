"""Does one cell leave less than others do together? Image by image where their units are at hand, else by intervals that do not touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from defend.results.outcomes import Reader, Record, worst
from defend.stats import compare

POINTS = 0.02  # as the audit's gap
SURE = 0.001  # of the paired test: a table compares many cells, and says nothing of most
Beats = Callable[[Record, Sequence[Record]], bool]  # (the cell, the others)


def by_intervals(cell: Record, others: Sequence[Record]) -> bool:
    """Intervals of accuracies over the same images are blunt: at n = 1,000 they see a gap of six points."""
    return bool(cell["ci_high"] < best(others)["ci_low"])


def best(records: Sequence[Record]) -> Record:
    return min(records, key=lambda r: float(r["robust_accuracy"]))


def image_by_image(read: Reader) -> Beats:
    def beats(cell: Record, others: Sequence[Record]) -> bool:
        mine, theirs = read(cell), [found for r in others if (found := read(r)) is not None]
        if (
            mine is None
            or len(theirs) < len(others)
            or len({o.score.shape for o in (mine, *theirs)}) > 1
        ):
            return by_intervals(cell, others)
        left, right = worst(theirs), worst([mine])
        if left.mean() - right.mean() < POINTS - 1e-9:
            return False
        return compare(left, right).p < SURE

    return beats
