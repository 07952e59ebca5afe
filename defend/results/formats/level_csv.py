"""The table by level as CSV: three columns of numbers for each level, as shares or in the unit."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from typing import Any

from defend.results.claim_text import summarise_claim
from defend.results.diagnostics import format_training_mark
from defend.results.model import LEVEL_COLUMNS, LevelRow, Number, Section, Table
from defend.results.report.marks import format_marks
from defend.results.training_knowledge import format_trained_on

_SECTION = ("task", "dataset", "split", "n", "seed", "classifier", "norm", "precision", "layout")
_ROW = ("defense", "draws", "eps", "eps_text")


def format_levels_csv(model: Table) -> str:
    """Return a line for each defense and eps; what was not measured is empty.

    For each level: its number, `_low` and `_high`. "marks" says in which column something speaks
    against a number, or makes it an upper bound.
    """
    levels = [c for c in LEVEL_COLUMNS if any(c in s.level_columns for s in model.sections)]
    columns = [c for level in levels for c in (level, f"{level}_low", f"{level}_high")]
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_SECTION, *_ROW, "trained_on", *columns, "unit", "claim", "marks"])
    for section in model.sections:
        for row in section.levels:
            writer.writerow(_make_line(section, row, levels))
    return out.getvalue()


def _make_line(section: Section, row: LevelRow, levels: Sequence[str]) -> list[Any]:
    values: list[float | None] = []
    for level in levels:
        number = row.numbers.get(level)
        values += [None] * 3 if number is None else [number.value, number.low, number.high]
    return [
        *(getattr(section.key, name) for name in _SECTION),
        *(getattr(row, name) for name in _ROW),
        format_trained_on(row.trained_on),
        *values,
        section.task.unit,
        summarise_claim(row.claim),
        "; ".join(_list_marks(row)),
    ]


def _list_marks(row: LevelRow) -> list[str]:
    marks = list(map(format_training_mark, row.training_marks))
    for column, number in row.numbers.items():
        marks += [f"{column}: {text}" for text in _texts(number)]
    return marks


def _texts(number: Number) -> list[str]:
    if number.failed is not None:
        return [f"failed: {number.failed}"]
    bound = ["at most this: its units are not at hand"] if number.bound else []
    return [*bound, *format_marks(number)]
