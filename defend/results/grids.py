"""The two tables of a section as rows of names and numbers, before they are laid out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from defend.records import Claim
from defend.results.model import (
    ADAPTIVE,
    COLUMNS,
    LEVEL_COLUMNS,
    LevelRow,
    Number,
    Row,
    Section,
)
from defend.results.table_text import format_defense, format_passes
from defend.results.training_knowledge import format_trained_on

FormatClaim = Callable[[Claim], str]


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One line: its names, its eps, a number for each column, and the texts behind them."""

    names: tuple[str, ...]
    eps_text: str
    numbers: Mapping[str, Number]
    last: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GridTable:
    """A table without a layout. `columns` maps the keys of the numbers to their headings."""

    names: tuple[str, ...]
    columns: Mapping[str, str]
    last: tuple[str, ...]
    rows: tuple[GridRow, ...]


def table_by_level(section: Section, format_claim: FormatClaim) -> GridTable:
    """Return a row for each defense and eps, whose columns are levels of knowledge."""
    names = ["defense", *_trained_heading(section.levels)]
    rows = []
    for row in section.levels:
        rows.append(
            GridRow(
                names=(format_defense(row), *_trained_text(row, names)),
                eps_text=row.eps_text,
                numbers=row.numbers,
                last=(format_claim(row.claim),),
            )
        )
    return GridTable(
        names=tuple(names),
        columns={column: LEVEL_COLUMNS[column] for column in section.level_columns},
        last=("claim",),
        rows=tuple(rows),
    )


def table_by_attack(section: Section) -> GridTable:
    """Return a row for each defense, attack and eps, whose columns are levels and gradients."""
    rows = []
    for row in section.rows:
        rows.append(
            GridRow(
                names=(format_defense(row), row.attack),
                eps_text=row.eps_text,
                numbers=row.numbers,
                last=(format_passes(row),),
            )
        )
    return GridTable(
        names=("defense", "attack"),
        columns={column: _heading(column) for column in section.columns},
        last=("fwd+bwd",),
        rows=tuple(rows),
    )


def _heading(column: str) -> str:
    return f"adaptive\n{COLUMNS[column]}" if column in ADAPTIVE else COLUMNS[column]


def _trained_heading(rows: Sequence[LevelRow | Row]) -> list[str]:
    return ["trained on"] if any(row.trained_on for row in rows) else []


def _trained_text(row: LevelRow, names: Sequence[str]) -> list[str]:
    return [format_trained_on(row.trained_on)] if "trained on" in names else []
