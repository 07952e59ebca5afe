"""The table by level as text for a paper or a program: CSV, LaTeX, Markdown."""

from __future__ import annotations

from collections.abc import Callable

from defend.results.formats.level_csv import format_levels_csv
from defend.results.formats.level_table import make_level_tables
from defend.results.formats.level_table_latex import format_latex
from defend.results.formats.level_table_markdown import format_markdown
from defend.results.model import Table

TEXT_FORMATS: dict[str, Callable[[Table], str]] = {
    "csv": format_levels_csv,
    "latex": lambda model: format_latex(make_level_tables(model)),
    "markdown": lambda model: format_markdown(make_level_tables(model)),
}
