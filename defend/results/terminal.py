"""The tables on a terminal, each in the widest of several layouts that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from defend.protocols.evidence import MIN_IMAGES
from defend.records import Claim, Record
from defend.results.build import table
from defend.results.grids import GridRow, GridTable, table_by_attack, table_by_level
from defend.results.model import Number, Section, Table
from defend.results.notes import make_notes
from defend.results.table_text import format_bound, format_value

FormatCell = Callable[[Number | None], Text]
_NAME = 28  # characters after which a spec is folded
_HEADING = 20  # characters of a heading where each number stands on a line


def print_table(
    records: Sequence[Record],
    console: Console,
    run_dirs: Sequence[Path] = (),
    beside: Sequence[Record] = (),
) -> None:
    """Print the worst case by level, then each attack. Nothing is bold, and nothing is ranked.

    run_dirs: folders of the units, for worst cases image by image. beside: see `table`.
    """
    model = table(records, run_dirs, beside)
    for section in model.sections:
        console.print(Text(section.title))
        for title, grid in _list_grids(model, section):
            if title:
                console.print(Text(title))
            console.print(_choose_layout(grid, section, console))
    for title, lines in make_notes(model):
        if title:
            console.print(Text(title))
        indent = 2 if title else 0
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, indent), expand=False))


def _list_grids(model: Table, section: Section) -> list[tuple[str, GridTable]]:
    """Return the table by level, and that of each attack; of null attacks alone the latter."""
    by_attack = ("Each attack:", table_by_attack(section))
    if not section.levels:
        return [by_attack]
    by_level = table_by_level(section, lambda claim: _format_stands(model, claim))
    return [("", by_level), by_attack]


def _format_stands(model: Table, claim: Claim) -> str:
    stands = "yes" if claim.stands else "no"
    if claim.stands and not claim.ranks:
        stands = "at a non-standard eps"
    return f"{stands} [{model.letter(claim)}]"


def _choose_layout(grid: GridTable, section: Section, console: Console) -> RenderableType:
    """Return the table with intervals beside the numbers if there is room, else below them.

    Names stand in columns if there is room, else on lines of their own. Where even the numbers have
    no room, each stands on a line.
    """
    # A tenth of a percent says nothing about few images.
    is_share = section.task.unit == "share"
    digits = 0 if is_share and section.key.n < MIN_IMAGES else 1
    for format_cell in (_beside(1), _beside(digits), _below(1)):
        in_columns = _lay_out_in_columns(grid, format_cell)
        if _width(in_columns, console) <= console.width:
            return in_columns
    for format_cell in (_beside(digits), _below(digits)):
        if _width_of_numbers(grid, format_cell) <= console.width:
            return _lay_out_in_groups(grid, format_cell)
    return _lay_out_as_list(grid, digits)


def _width(renderable: RenderableType, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000), renderable).maximum


def _lay_out_in_columns(grid: GridTable, format_cell: FormatCell) -> Grid:
    """Return one grid, in which a name is printed where it changes."""
    laid_out = _empty_grid(grid.names, grid, grid.last)
    previous: tuple[str, ...] = ()
    for row in grid.rows:
        names = _names_that_change(row.names, previous)
        last = map(Text, row.last)
        laid_out.add_row(
            *map(Text, names), Text(row.eps_text), *_cells(grid, row, format_cell), *last
        )
        previous = row.names
    return laid_out


def _names_that_change(names: Sequence[str], previous: Sequence[str]) -> list[str]:
    """Return the names, empty from the first on as long as the row above has the same."""
    if not previous or names[0] != previous[0]:
        return list(names)
    return ["" if name == above else name for name, above in zip(names, previous, strict=True)]


def _width_of_numbers(grid: GridTable, format_cell: FormatCell) -> int:
    """Return the width of the columns from eps on, with a space between them."""
    widths = _measure_columns(grid, format_cell)
    return sum(widths) + len(widths) - 1


def _lay_out_in_groups(grid: GridTable, format_cell: FormatCell) -> Group:
    """Return the headings once, and the rows of the same names below a line of these names."""
    widths = _measure_columns(grid, format_cell)
    parts: list[RenderableType] = [_empty_grid([], grid, [], widths)]
    for names, group in groupby(grid.rows, lambda row: (row.names, row.last)):
        laid_out = _empty_grid([], grid, [], widths, show_header=False)
        for row in group:
            laid_out.add_row(Text(row.eps_text), *_cells(grid, row, format_cell))
        parts += [Text(_describe_group(grid, *names)), laid_out]
    return Group(*parts)


def _lay_out_as_list(grid: GridTable, digits: int) -> Group:
    """Return a line for each number, below a line of the names and of the eps."""
    parts: list[RenderableType] = []
    for row in grid.rows:
        parts.append(Text(f"{_describe_group(grid, row.names, row.last)} | eps {row.eps_text}"))
        for column, heading in grid.columns.items():
            if column in row.numbers:
                number = _format_cell(row.numbers[column], _interval_in_brackets(digits), " ")
                line = Text(f"  {heading}".replace("\n", " ").ljust(_HEADING))
                parts.append(line.append_text(number))
    return Group(*parts)


def _interval_in_brackets(digits: int) -> Callable[[Number], str]:
    def format_interval(number: Number) -> str:
        low, high = number.scale * (number.low or 0), number.scale * (number.high or 0)
        return f" ({low:.{digits}f}-{high:.{digits}f})"

    return format_interval


def _measure_columns(grid: GridTable, format_cell: FormatCell) -> list[int]:
    """Return the width of each column from eps on, of its heading and its cells."""
    headings = [Text("eps"), *map(Text, grid.columns.values())]
    rows = [[Text(row.eps_text), *_cells(grid, row, format_cell)] for row in grid.rows]
    return [max(map(_measure, column)) for column in zip(headings, *rows, strict=True)]


def _measure(cell: Text) -> int:
    return max(map(len, cell.plain.split("\n")))


def _cells(grid: GridTable, row: GridRow, format_cell: FormatCell) -> list[Text]:
    return [format_cell(row.numbers.get(column)) for column in grid.columns]


def _describe_group(grid: GridTable, names: Sequence[str], last: Sequence[str]) -> str:
    """Return "jpeg | trained on clean | claim no [a]"; empty names are left out."""
    headings = (*grid.names, *grid.last)
    words = []
    for heading, text in zip(headings, (*names, *last), strict=True):
        spoken = "" if heading in ("defense", "attack") else heading
        if text:
            words.append(f"{spoken} {text}".strip())
    return " | ".join(words)


def _empty_grid(
    names: Sequence[str],
    table: GridTable,
    last: Sequence[str],
    widths: Sequence[int] = (),
    show_header: bool = True,
) -> Grid:
    grid = Grid(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        show_header=show_header,
        pad_edge=False,
        padding=0,
        header_style="",
        collapse_padding=False,
    )
    for name in names:
        grid.add_column(Text(name), max_width=_NAME, overflow="fold", vertical="top")
    for i, heading in enumerate(("eps", *table.columns.values())):
        least = widths[i] if widths else None
        grid.add_column(Text(heading), justify="right", no_wrap=True, min_width=least)
    for name in last:
        grid.add_column(Text(name), justify="right", no_wrap=True)
    return grid


def _beside(digits: int) -> FormatCell:
    """Return the layout "93.5 89.2-96.2", in fixed widths, so that the points are aligned."""
    low_width, high_width = (4, 5) if digits else (2, 3)

    def format_interval(number: Number) -> str:
        low = f"{number.scale * (number.low or 0):>{low_width}.{digits}f}"
        high = f"{number.scale * (number.high or 0):<{high_width}.{digits}f}"
        return f" {low}-{high}"

    def format_cell(number: Number | None) -> Text:
        text = _format_cell(number, format_interval, " ")
        text.justify = "left"
        return text

    return format_cell


def _below(digits: int) -> FormatCell:
    """Return the layout with the interval below the number."""

    def format_interval(number: Number) -> str:
        low, high = number.scale * (number.low or 0), number.scale * (number.high or 0)
        return f"\n{low:.{digits}f}-{high:.{digits}f}"

    return lambda number: _format_cell(number, format_interval, "\n")


def _format_cell(
    number: Number | None, format_interval: Callable[[Number], str], separator: str
) -> Text:
    """Return the number, marked "!" if something speaks against it, its interval and its note."""
    if number is None:
        return Text(f"{'·':>5}", style="dim")
    if number.value is None:
        return Text("failed", style="red")
    mark = "!" if number.is_marked else ""
    accuracy = f"{mark}{format_bound(number)}{format_value(number)}"
    text = Text(accuracy.rjust(5))
    text.append(format_interval(number), style="dim")
    if number.note:
        text.append("\n" + number.note.replace(" ", separator), style="yellow")
    return text
