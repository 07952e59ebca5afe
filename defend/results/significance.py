"""Whether one cell leaves significantly fewer images right than others do together.

The comparison is image by image if the units are at hand, else by intervals that do not touch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from defend.records import Measured, Record
from defend.results.candidates import worst_outcomes
from defend.results.outcomes import OutcomeReader, clusters_of
from defend.stats import per_cluster
from defend.tasks.registry import load_task

MAX_P = 0.001  # of the paired test: a table compares many cells, and most show nothing
IsStronger = Callable[[Record, Sequence[Record]], bool]  # (the cell, the others)


def stronger_by_intervals(cell: Record, other_cells: Sequence[Record]) -> bool:
    """Return True if the cell's interval lies below that of the strongest other cell.

    Intervals of accuracies over the same images are blunt: at n = 1,000 they see a gap of six
    points.
    """
    return high_of(cell) < low_of(strongest(other_cells))


def strongest(records: Sequence[Record]) -> Record:
    """Return the cell that leaves the fewest images right; none of them failed."""
    return min(records, key=value_of)


def value_of(record: Record) -> float:
    """Return the robust accuracy of a cell that did not fail, or the score of another task."""
    return _number(record).value


def low_of(record: Record) -> float:
    """Return the low end of the interval of a cell that did not fail."""
    return _number(record).low


def high_of(record: Record) -> float:
    """Return the high end of the interval of a cell that did not fail."""
    return _number(record).high


def _number(record: Record) -> Measured:
    assert record.number is not None, "a cell without an error has its numbers"
    return record.number


def compare_images(reader: OutcomeReader) -> IsStronger:
    """Return the comparison that is image by image if the units are at hand."""

    def is_stronger(cell: Record, other_cells: Sequence[Record]) -> bool:
        outcomes = reader.read_matching([cell, *other_cells])
        if outcomes is None:
            return stronger_by_intervals(cell, other_cells)
        task = load_task(cell.task)
        clusters = clusters_of([cell, *other_cells])
        of_cell, of_others = (
            per_cluster(worst_outcomes(side), clusters) for side in (outcomes[:1], outcomes[1:])
        )
        if of_others.mean() - of_cell.mean() < task.least_gap - 1e-9:
            return False
        return task.compare(of_others, of_cell).p < MAX_P

    return is_stronger
