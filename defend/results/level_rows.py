"""Rows of the table by level: one defense at one eps, and the worst case of each level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from defend.records import Record
from defend.results.claims import Claims
from defend.results.diagnostics import Finding
from defend.results.grouping import claim_key, group_by, series_key
from defend.results.model import LevelRow, Number
from defend.results.numbers import cells_number, clean_number, worst_number
from defend.results.outcomes import OutcomeReader
from defend.results.training_knowledge import find_training_marks
from defend.results.worst_case import list_budgets


def make_level_rows(
    records: Sequence[Record],
    claims: Claims,
    accusations: Sequence[Finding],
    reader: OutcomeReader,
) -> tuple[LevelRow, ...]:
    """Return the rows of a section, the eps of each defense in ascending order.

    Controls attack nothing, and are in no row.
    """
    budgets = list_budgets(records)
    attacks = [r for r in records if not r.is_control and r.eps in budgets]
    rows = []
    for series in group_by(attacks, series_key).values():
        by_eps = group_by(sorted(series, key=lambda r: r.eps), lambda r: r.eps)
        for cells in by_eps.values():
            rows.append(_make_row(cells, claims, accusations, reader))
    return tuple(rows)


def _make_row(
    cells: Sequence[Record],
    claims: Claims,
    accusations: Sequence[Finding],
    reader: OutcomeReader,
) -> LevelRow:
    first = cells[0]
    return LevelRow(
        defense=first.defense_label,
        eps=first.eps,
        eps_text=first.eps_text,
        numbers=dict(_make_numbers(cells, accusations, reader)),
        trained_on=first.trained_on,
        training_marks=find_training_marks(first),
        draws=first.draws,
        claim=claims[claim_key(first)],
    )


def _make_numbers(
    cells: Sequence[Record], accusations: Sequence[Finding], reader: OutcomeReader
) -> Iterator[tuple[str, Number]]:
    yield "clean", clean_number(cells, reader.read_one, accusations)
    for level, of_level in group_by(cells, lambda r: r.knowledge).items():
        yield level, cells_number(of_level, reader, accusations)
    yield "worst", worst_number(cells, reader, accusations)[0]
