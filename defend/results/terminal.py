"""The table on a terminal, in the widest of three forms that fits."""

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

from defend.results.build import table
from defend.results.claims import IMAGES
from defend.results.outcomes import Record
from defend.results.table import (
    ADAPTIVE,
    COLUMNS,
    Number,
    Section,
    Table,
    Worst,
    claims,
    number_text,
    passes,
    percent,
    short,
)
from defend.results.worst_case import heading, said

Form = Callable[[Number | None], Text]
_NAME = 28  # characters after which a spec is folded


def print_table(
    records: Sequence[Record],
    console: Console,
    run_dirs: Sequence[Path] = (),
    beside: Sequence[Record] = (),
) -> None:
    """run_dirs: where the units lie, for worst cases image by image; beside: see `table`. Nothing is bold, nothing ranked."""
    model = table(records, run_dirs, beside)
    for section in model.sections:
        console.print(Text(section.title))
        console.print(_fitting(model, section, console))
    for title, lines in _notes(model):
        if title:
            console.print(Text(title))
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2 if title else 0), expand=False))


def _fitting(model: Table, section: Section, console: Console) -> RenderableType:
    """Intervals beside the numbers where there is room, else below them; names in columns where there is room, else on lines."""
    coarse = 0 if section.n < IMAGES else 1  # a tenth of a percent says nothing about few images
    whole = [_grid(model, section, form) for form in (_beside(1), _beside(coarse), _below(1))]
    for grid in whole:
        if _width(grid, console) <= console.width:
            return grid
    beside = _narrow(model, section, _beside(coarse))
    return (
        beside
        if _width(beside, console) <= console.width
        else _narrow(model, section, _below(coarse))
    )


def _width(made: RenderableType, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000), made).maximum


def _grid(model: Table, section: Section, form: Form) -> Grid:
    """Defense and attack are named in their first row."""
    trained = any(row.trained_on for row in section.rows)
    grid = _empty(
        ["defense", *(["trained on"] if trained else []), "attack"],
        section.columns,
        ["fwd+bwd", "claim"],
    )
    above: tuple[str, ...] = ("", "", "")
    for row in section.rows:
        names = (row.defense, *([row.trained_on or ""] if trained else []), row.attack)
        new = row.defense != above[0]
        shown = (
            names
            if new
            else (*[""] * (len(names) - 1), row.attack if row.attack != above[-1] else "")
        )
        cells = [form(row.numbers.get(c)) for c in section.columns]
        claim = f"{'yes' if claims(row.claim) else 'no'} [{model.mark(row)}]"
        grid.add_row(
            *(Text(s) for s in shown), Text(row.eps_text), *cells, Text(passes(row)), Text(claim)
        )
        above = names
    return grid


def _narrow(model: Table, section: Section, form: Form) -> Group:
    """Names on lines of their own."""
    parts: list[RenderableType] = []
    for (defense, attack), same in groupby(section.rows, lambda row: (row.defense, row.attack)):
        rows = list(same)
        about = [
            defense,
            attack,
            f"{passes(rows[0])} passes",
            f"{'claim' if claims(rows[0].claim) else 'no claim'} [{model.mark(rows[0])}]",
        ]
        if rows[0].trained_on:
            about.insert(1, f"trained on {rows[0].trained_on}")
        grid = _empty([], section.columns, [])
        for row in rows:
            grid.add_row(Text(row.eps_text), *(form(row.numbers.get(c)) for c in section.columns))
        parts += [Text(" | ".join(about)), grid]
    return Group(*parts)


def _empty(names: Sequence[str], columns: Sequence[str], last: Sequence[str]) -> Grid:
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
        head = f"adaptive\n{COLUMNS[column]}" if column in ADAPTIVE else COLUMNS[column]
        grid.add_column(Text(head), justify="right", no_wrap=True)
    for name in last:
        grid.add_column(Text(name), justify="right", no_wrap=True)
    return grid


def _beside(digits: int) -> Form:
    """93.5 89.2-96.2, in places of fixed width, so that the points stand below each other."""
    low, high = (4, 5) if digits else (2, 3)

    def form(number: Number | None) -> Text:
        text = _cell(
            number,
            lambda n: (
                f" {100 * (n.low or 0):>{low}.{digits}f}-{100 * (n.high or 0):<{high}.{digits}f}"
            ),
            " ",
        )
        text.justify = "left"
        return text

    return form


def _below(digits: int) -> Form:
    return lambda number: _cell(
        number,
        lambda n: f"\n{100 * (n.low or 0):.{digits}f}-{100 * (n.high or 0):.{digits}f}",
        "\n",
    )


def _cell(number: Number | None, interval: Callable[[Number], str], between: str) -> Text:
    if number is None:
        return Text(f"{'·':>5}", style="dim")
    if number.accuracy is None:
        return Text("failed", style="red")
    shown = Text(
        f"{'!' if number.flags else ''}{number.at_most}{percent(number.accuracy)}".rjust(5)
    )
    shown.append(interval(number), style="dim")
    if number.note:
        shown.append("\n" + number.note.replace(" ", between), style="yellow")
    return shown


def _notes(model: Table) -> list[tuple[str, Sequence[str]]]:
    """Titled blocks, the empty ones left out."""
    marked = [f"[{model.letter(claim)}] {claim}" for claim in model.claims]
    blocks = [
        ("", marked),
        ("Transfer attacks were made on:", model.surrogates),
        *(
            (
                f"Worst case of each image over everything that was run, {s.title}:",
                [_worst(model, w) for w in s.worst],
            )
            for s in model.sections
        ),
        (heading(model.comparisons), [said(c) for c in model.comparisons]),
        ("Accuracy after so many queries:", model.queries),
        ("No claim survives:", model.signs),
        ("What comparing cells shows:", model.findings),
        ("Flags (marked !):", model.flags),
        ("Failed:", model.failures),
        ("How to read this:", model.reading),
    ]
    return [(title, lines) for title, lines in blocks if lines]


def _worst(model: Table, w: Worst) -> str:
    """median: 25.0 (19.5-31.4) of 93.5 clean at eps 0.2; ..."""
    parts = [
        f"{w.defense}: {number_text(w.number)} of {percent(w.clean.accuracy)} clean at eps {w.eps_text}"
    ]
    if w.all_draws is not None:
        parts.append(
            f"right in all {w.draws} draws {percent(w.all_draws)}, in most {percent(w.majority)} (a {w.draws} times dearer defense)"
        )
    if w.control is not None:
        parts.append(
            f"harmless control {number_text(w.control)} ({w.controls} null attack{'s' if w.controls > 1 else ''} for {w.candidates})"
        )
    parts.append(
        f"{w.candidates} attack{'s' if w.candidates > 1 else ''}, {short(w.passes[0])}+{short(w.passes[1])} passes"
    )
    if w.purify_ms is not None:
        parts.append(f"purifying costs {w.purify_ms:.2g} ms per image")
    return "; ".join([*parts, f"[{model.letter(w.claim)}]"])
