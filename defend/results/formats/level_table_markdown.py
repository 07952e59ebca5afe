"""The table by level as Markdown, with a table in pipes and notes below it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from defend.errors import one_line
from defend.results.formats.level_table import Cell, LevelTable

# Characters that begin markup somewhere in a line. "-" and "." do so at its beginning alone, where
# no name stands.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def format_markdown(tables: Sequence[LevelTable]) -> str:
    """Return the tables one below the other."""
    return "\n".join("\n".join(_lines(table)) + "\n" for table in tables)


def escape_markdown(text: str) -> str:
    """Return the text on one line, without a character that Markdown would read as markup."""
    return _MARKUP.sub(r"\\\1", one_line(text))


def _lines(table: LevelTable) -> Iterator[str]:
    yield f"**{escape_markdown(table.title)}.** {escape_markdown(table.legend)}"
    yield ""
    yield _row(map(escape_markdown, table.headings))
    numbers = len(table.headings) - table.names
    yield _row(["---"] * table.names + ["---:"] * numbers)
    for cells in table.rows:
        yield _row(map(_format_cell, cells))
    yield ""
    for number, note in enumerate(table.notes, 1):
        yield f"- <sup>{number}</sup> {escape_markdown(note)}"
    for remark in table.remarks:
        yield f"- {escape_markdown(remark)}"


def _row(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _format_cell(cell: Cell) -> str:
    mark = f"<sup>{','.join(map(str, cell.notes))}</sup>" if cell.notes else ""
    return escape_markdown(cell.text) + mark
