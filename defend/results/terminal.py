"""The table on a terminal, in the widest of several layouts that fits."""

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
from defend.records import Record
from defend.results.build import table
from defend.results.model import ADAPTIVE, COLUMNS, Number, Row, Section, Table
from defend.results.notes import make_notes
from defend.results.table_text import format_bound, format_defense, format_passes, format_value
from defend.results.training_knowledge import format_trained_on

FormatCell = Callable[[Number | None], Text]
_NAME = 28  # characters after which a spec is folded


def print_table(
    records: Sequence[Record],
    console: Console,
    run_dirs: Sequence[Path] = (),
    beside: Sequence[Record] = (),
) -> None:
    """Print the table of the records. Nothing is bold, and nothing is ranked.

    run_dirs: folders of the units, for worst cases image by image. beside: see `table`.
    """
    model = table(records, run_dirs, beside)
    for section in model.sections:
        console.print(Text(section.title))
        console.print(_choose_layout(model, section, console))
    for title, lines in make_notes(model):
        if title:
            console.print(Text(title))
        indent = 2 if title else 0
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, indent), expand=False))


def _choose_layout(model: Table, section: Section, console: Console) -> RenderableType:
    """Return the section with intervals beside the numbers if there is room, else below them.

    Names stand in columns if there is room, else on lines of their own.
    """
    # A tenth of a percent says nothing about few images.
    is_share = section.task.unit == "share"
    digits = 0 if is_share and section.key.n < MIN_IMAGES else 1
    for format_cell in (_beside(1), _beside(digits), _below(1)):
        grid = _make_grid(model, section, format_cell)
        if _width(grid, console) <= console.width:
            return grid
    beside = _make_groups(model, section, _beside(digits))
    if _width(beside, console) <= console.width:
        return beside
    return _make_groups(model, section, _below(digits))


def _width(renderable: RenderableType, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000), renderable).maximum


def _make_grid(model: Table, section: Section, format_cell: FormatCell) -> Grid:
    """Return one grid, in which defense and attack are named in their first row."""
    is_any_trained = any(row.trained_on for row in section.rows)
    headings = ["defense", "trained on", "attack"] if is_any_trained else ["defense", "attack"]
    grid = _empty_grid(headings, section.columns, ["fwd+bwd", "claim"])
    previous: Row | None = None
    for row in section.rows:
        names = _names_that_change(row, previous)
        if not is_any_trained:
            names = [names[0], names[-1]]
        grid.add_row(
            *map(Text, names),
            Text(row.eps_text),
            *(format_cell(row.numbers.get(column)) for column in section.columns),
            Text(format_passes(row)),
            Text(f"{'yes' if row.claim.stands else 'no'} [{model.letter(row.claim)}]"),
        )
        previous = row
    return grid


def _names_that_change(row: Row, previous: Row | None) -> list[str]:
    """Return defense, training data and attack, empty if the row above has the same."""
    if previous is None or row.defense != previous.defense:
        return [format_defense(row), format_trained_on(row.trained_on), row.attack]
    return ["", "", "" if row.attack == previous.attack else row.attack]


def _make_groups(model: Table, section: Section, format_cell: FormatCell) -> Group:
    """Return a small grid for each attack on each defense, with the names on a line above."""
    parts: list[RenderableType] = []
    for _, group in groupby(section.rows, lambda row: (row.defense, row.attack)):
        rows = list(group)
        grid = _empty_grid([], section.columns, [])
        for row in rows:
            numbers = [format_cell(row.numbers.get(column)) for column in section.columns]
            grid.add_row(Text(row.eps_text), *numbers)
        parts += [Text(_describe_group(model, rows[0])), grid]
    return Group(*parts)


def _describe_group(model: Table, row: Row) -> str:
    words = [format_defense(row)]
    if row.trained_on:
        words.append(f"trained on {format_trained_on(row.trained_on)}")
    words.append(row.attack)
    words.append(f"{format_passes(row)} passes")
    claim = "claim" if row.claim.stands else "no claim"
    words.append(f"{claim} [{model.letter(row.claim)}]")
    return " | ".join(words)


def _empty_grid(names: Sequence[str], columns: Sequence[str], last: Sequence[str]) -> Grid:
    grid = Grid(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        header_style="",
        collapse_padding=False,
    )
    for name in names:
        grid.add_column(Text(name), max_width=_NAME, overflow="fold", vertical="top")
    grid.add_column(Text("eps"), justify="right", no_wrap=True)
    for column in columns:
        heading = COLUMNS[column]
        if column in ADAPTIVE:
            heading = f"adaptive\n{heading}"
        grid.add_column(Text(heading), justify="right", no_wrap=True)
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
