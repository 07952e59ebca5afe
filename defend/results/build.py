"""From records to a table: the levels of one attack side by side, the worst case over gradients,
and the notes below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from defend.records import Claim, Record
from defend.results.cell_notes import (
    list_failures,
    list_flags,
    list_measures,
    list_queries,
    list_rounds,
)
from defend.results.claim_text import format_claim
from defend.results.claims import Claims, list_signs, make_claims, refute_claims
from defend.results.comparisons import compare_cells, find_accusations, findings_against
from defend.results.defense_pairs import compare_defenses
from defend.results.diagnostics import Finding
from defend.results.footnotes import list_surrogates, make_footnotes, make_level_footnotes
from defend.results.grouping import (
    SectionKey,
    claim_key,
    group_by,
    section_key,
    series_key,
    unify_spellings,
)
from defend.results.level_rows import make_level_rows
from defend.results.measure_pairs import list_measure_pairs
from defend.results.model import Number, Row, Section, Table
from defend.results.numbers import cells_number, clean_number
from defend.results.outcomes import OutcomeReader
from defend.results.significance import IsStronger, compare_images
from defend.results.training_knowledge import find_training_marks, list_training_marks
from defend.results.unconfirmed import find_unconfirmed, list_unconfirmed, refute_unconfirmed
from defend.results.verify import Problem
from defend.results.worst_case import worst_cases
from defend.threat_models import gradient_kind


def table(
    records: Sequence[Record],
    run_dirs: Sequence[Path] = (),
    beside: Sequence[Record] = (),
    reader: OutcomeReader | None = None,
    problems: Sequence[Sequence[Problem]] = (),
) -> Table:
    """Return the table of the records of one or several runs.

    If the units are not in `run_dirs`, a worst case over several cells is a bound: their minimum.
    beside: other cells of the same folders. They are not shown, but no claim stands that they
    refute. reader: the reader of the same folders, if some units have been read already. problems:
    of each of the records, as `verify_record` returns them: such numbers are marked, and no claim
    rests on them.
    """
    reader = reader or OutcomeReader(run_dirs)
    is_stronger = compare_images(reader)
    shown_ids = {r.cell_id for r in records}
    not_shown = [r for r in beside if r.cell_id not in shown_ids]
    every = unify_spellings([*records, *not_shown])
    shown = every[: len(records)]
    claims = _make_claims(shown, every, reader, is_stronger)
    unconfirmed = find_unconfirmed(shown, problems)
    claims = refute_unconfirmed(claims, unconfirmed)
    accusations = [*find_accusations(shown, is_stronger), *unconfirmed]
    sections = tuple(
        _make_section(key, cells, claims, accusations, reader)
        for key, cells in group_by(shown, section_key).items()
    )
    return Table(
        sections=sections,
        claims=_distinct_claims(sections),
        surrogates=list_surrogates(shown),
        signs=list_signs(claims),
        comparisons=compare_defenses(sections, reader),
        measures=list_measures(shown),
        measure_pairs=list_measure_pairs(shown, reader),
        queries=list_queries(shown),
        rounds=list_rounds(shown),
        findings=tuple(compare_cells(shown, is_stronger)),
        accusations=tuple(tuple(findings_against(r, accusations)) for r in shown),
        unconfirmed=list_unconfirmed(unconfirmed),
        training=list_training_marks(shown),
        flags=list_flags(shown),
        failures=list_failures(shown),
        footnotes=make_footnotes(shown),
        level_footnotes=make_level_footnotes(shown),
    )


def _make_claims(
    shown: Sequence[Record],
    every: Sequence[Record],
    reader: OutcomeReader,
    is_stronger: IsStronger,
) -> Claims:
    """Return the claims of the cells that are shown, as far as no other cell refutes them."""
    claims = make_claims(shown, reader, is_stronger)
    if len(every) == len(shown):
        return claims
    return refute_claims(claims, make_claims(every, reader, is_stronger))


def _distinct_claims(sections: Iterable[Section]) -> tuple[Claim, ...]:
    """Return one claim for each distinct line, in the order of the rows."""
    by_line: dict[str, Claim] = {}
    for section in sections:
        for row in section.rows:
            by_line.setdefault(format_claim(row.claim), row.claim)
    return tuple(by_line.values())


def _make_section(
    key: SectionKey,
    records: Sequence[Record],
    claims: Claims,
    accusations: Sequence[Finding],
    reader: OutcomeReader,
) -> Section:
    attacks = [r for r in records if not r.is_control] or records
    rows = []
    for series in group_by(attacks, series_key).values():
        for cells in group_by(series, lambda r: (r.bare_attack, r.eps)).values():
            rows.append(_make_row(cells, claims, accusations, reader))
    return Section(
        key=key,
        classifier_trained_on=records[0].classifier_trained_on,
        rows=tuple(_in_order_of_specs(rows, records)),
        levels=make_level_rows(records, claims, accusations, reader),
        worst=worst_cases(records, claims, accusations, reader),
    )


def _in_order_of_specs(rows: Iterable[Row], records: Iterable[Record]) -> list[Row]:
    """Return the rows in the order in which defenses and attacks come in the records."""
    rank: dict[str, int] = {}
    for record in records:
        rank.setdefault(record.defense_label, len(rank))
        rank.setdefault(record.bare_attack, len(rank))
    return sorted(rows, key=lambda row: (rank[row.defense], row.draws, rank[row.attack], row.eps))


def _make_row(
    cells: Sequence[Record],
    claims: Claims,
    accusations: Sequence[Finding],
    reader: OutcomeReader,
) -> Row:
    first = cells[0]
    most_expensive = max(cells, key=lambda r: (r.forwards or 0) + (r.backwards or 0))
    return Row(
        defense=first.defense_label,
        attack=first.bare_attack,
        eps=first.eps,
        eps_text=first.eps_text,
        numbers=_make_numbers(cells, accusations, reader),
        trained_on=first.trained_on,
        training_marks=find_training_marks(first),
        stochastic=first.stochastic,
        draws=first.draws,
        forwards=most_expensive.forwards,
        backwards=most_expensive.backwards,
        claim=claims[claim_key(first)],
    )


def _make_numbers(
    cells: Sequence[Record], accusations: Sequence[Finding], reader: OutcomeReader
) -> dict[str, Number]:
    """Return the number of each column."""
    numbers = {"clean": clean_number(cells, reader.read_one, accusations)}
    for column, in_column in group_by(cells, choose_column).items():
        if column != "worst":
            numbers[column] = cells_number(in_column, reader, accusations)
    adaptive = [r for r in cells if r.knowledge == "adaptive"]
    if adaptive:
        numbers["worst"] = cells_number(adaptive, reader, accusations, name_gradient=True)
    return numbers


def choose_column(record: Record) -> str:
    """Return the column of a cell: its level, and at `adaptive` its gradient at any temperature.

    An adaptive attack that takes no gradient stands in the column `worst` alone.
    """
    if record.knowledge != "adaptive":
        return record.knowledge
    return gradient_kind(record.gradient) if record.gradient else "worst"
