"""The table by level as plain texts, with numbered notes: what every text format prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from defend.results.claim_text import format_claim
from defend.results.diagnostics import format_training_mark
from defend.results.model import LEVEL_COLUMNS, LevelRow, Number, Section, Table
from defend.results.report.marks import format_marks
from defend.results.table_text import format_number, format_pair, format_pairs_heading
from defend.results.training_knowledge import format_trained_on


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A text of a table with the numbers of the notes that it is marked with."""

    text: str
    notes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LevelTable:
    """One section: the headings, as many cells in each row, and the notes below."""

    title: str
    legend: str  # what the numbers are
    names: int  # leading columns that hold names; the others hold numbers
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]  # the first is number 1
    remarks: tuple[str, ...]  # that no cell is marked with


def make_level_tables(model: Table) -> list[LevelTable]:
    """Return one table for each section of the model."""
    return [_make_table(model, section) for section in model.sections]


def _make_table(model: Table, section: Section) -> LevelTable:
    notes = _Notes()
    names = ["defense"]
    if any(row.trained_on for row in section.levels):
        names.append("trained on")
    rows = tuple(tuple(_make_cells(section, row, names, notes)) for row in section.levels)
    columns = [LEVEL_COLUMNS[column] for column in section.level_columns]
    return LevelTable(
        title=section.title,
        legend=f"{section.legend}, 95 % interval in brackets.",
        names=len(names),
        headings=(*names, "eps", *columns),
        rows=rows,
        notes=notes.texts,
        remarks=tuple(_remarks(model, section)),
    )


class _Notes:
    """Numbers of notes, each text once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the texts in the order of their numbers."""
        return tuple(self._numbers)

    def number(self, texts: Iterable[str]) -> tuple[int, ...]:
        """Return the numbers of these texts in ascending order."""
        numbers = (self._numbers.setdefault(text, len(self._numbers) + 1) for text in texts)
        return tuple(sorted(numbers))


def _make_cells(
    section: Section, row: LevelRow, names: Sequence[str], notes: _Notes
) -> Iterator[Cell]:
    trained_with = map(format_training_mark, row.training_marks)
    yield Cell(text=row.defense, notes=notes.number([*trained_with, format_claim(row.claim)]))
    if "trained on" in names:
        yield Cell(text=format_trained_on(row.trained_on))
    yield Cell(text=row.eps_text)
    for column in section.level_columns:
        yield _make_number(row.numbers, column, notes)


def _make_number(numbers: Mapping[str, Number], column: str, notes: _Notes) -> Cell:
    number = numbers.get(column)
    if number is None:
        return Cell(text="")
    if number.value is None:
        return Cell(text="failed", notes=notes.number([number.failed or "failed"]))
    return Cell(text=format_number(number), notes=notes.number(format_marks(number)))


def _remarks(model: Table, section: Section) -> Iterator[str]:
    """Yield the lines below the notes: surrogates, pairs of this section, and how to read it."""
    if model.unconfirmed:
        yield f"Not confirmed by the units of the run: {'; '.join(model.unconfirmed)}."
    if model.surrogates:
        yield f"Transfer attacks were made on: {'; '.join(model.surrogates)}."
    pairs = [pair for pair in model.comparisons if pair.title == section.title]
    if pairs:
        yield format_pairs_heading(model.comparisons)
        yield from map(format_pair, pairs)
    yield from model.level_footnotes
