r"""The table by level as LaTeX: a `table` with a `tabular`.

Its rules are those of booktabs if the document loads that package, else \hline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from defend.errors import one_line
from defend.results.formats.level_table import Cell, LevelTable

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "'": r"\char39{}",
    "`": r"\char96{}",
    # Behind the end of a row they would begin an argument.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}
_HYPHENS = re.compile("-(?=-)")  # LaTeX makes one dash out of several
_LAST_LATIN = 0x17F  # LaTeX sets letters up to here without a package
_PREAMBLE = r"""% Made by `defend report`. With \usepackage{booktabs} the rules are finer.
\providecommand{\toprule}{\hline}
\providecommand{\midrule}{\hline}
\providecommand{\bottomrule}{\hline}
"""


def format_latex(tables: Sequence[LevelTable]) -> str:
    """Return one floating table for each section, one below the other."""
    return _PREAMBLE + "".join("\n" + "\n".join(_lines(table)) + "\n" for table in tables)


def escape_latex(text: str) -> str:
    """Return the text on one line, each character as itself.

    Letters beyond Latin stand by their number, as U+4E2D: LaTeX sets them with packages alone.
    """
    return _HYPHENS.sub("-{}", "".join(map(_escape_character, one_line(text))))


def _escape_character(character: str) -> str:
    if ord(character) > _LAST_LATIN or not character.isprintable():
        return f"U+{ord(character):04X}"
    return _ESCAPES.get(character, character)


def _lines(table: LevelTable) -> Iterator[str]:
    numbers = len(table.headings) - table.names
    yield r"\begin{table}"
    yield r"\centering"
    yield rf"\caption{{{escape_latex(table.title)}. {escape_latex(table.legend)}}}"
    yield rf"\begin{{tabular}}{{{'l' * table.names}{'r' * numbers}}}"
    yield r"\toprule"
    yield _row(map(escape_latex, table.headings))
    yield r"\midrule"
    for cells in table.rows:
        yield _row(map(_format_cell, cells))
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield ""
    yield r"\smallskip"
    yield r"\begin{minipage}{\linewidth}\footnotesize"
    for number, note in enumerate(table.notes, 1):
        yield rf"\textsuperscript{{{number}}} {escape_latex(note)}\par"
    for remark in table.remarks:
        yield rf"{escape_latex(remark)}\par"
    yield r"\end{minipage}"
    yield r"\end{table}"


def _row(cells: Iterator[str]) -> str:
    return " & ".join(cells) + r" \\"


def _format_cell(cell: Cell) -> str:
    mark = rf"\textsuperscript{{{','.join(map(str, cell.notes))}}}" if cell.notes else ""
    return escape_latex(cell.text) + mark
