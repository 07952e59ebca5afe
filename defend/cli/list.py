"""defend list: names from entry points and zoo files.

No component is imported, so a broken plugin is listed like any other.
"""

from __future__ import annotations

import json
from typing import Any

import click

from defend.cli.common import PLURALS, make_console
from defend.errors import UnknownName, suggest_names
from defend.registry import REGISTRY
from defend.weights.zoo import ZooEntry, read_zoos

WEIGHTS = "weights"
TABLES = (*PLURALS, WEIGHTS)
_ONLY_IN_JSON = ("kind", "target")  # columns that the printed tables leave out
Row = dict[str, Any]


@click.command("list")
@click.argument("kind", required=False, metavar="[defenses|attacks|classifiers|datasets|weights]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_command(kind: str | None, as_json: bool) -> None:
    """List what is installed.

    A plugin is named without being imported; `defend check NAME` imports and tests it.
    """
    names = [parse_table_name(kind)] if kind else TABLES
    tables = {name: list_rows(name) for name in names}
    if as_json:
        for rows in tables.values():
            for row in rows:
                click.echo(json.dumps(row))
    else:
        print_tables(tables)


def parse_table_name(word: str) -> str:
    """Return the table that "defense" or "defenses" names. Raises UnknownName."""
    for name in (word, f"{word}s"):
        if name in TABLES:
            return name
    raise UnknownName(
        f"unknown kind '{word}': expected {', '.join(TABLES)}.{suggest_names(word, TABLES)}"
    )


def list_rows(table_name: str) -> list[Row]:
    """Return one row for each component, or for each file of weights."""
    if table_name == WEIGHTS:
        return [_weights_row(entry) for entry in read_zoos().values()]
    kind = PLURALS[table_name]
    return [
        {
            "kind": kind,
            "name": REGISTRY.to_type(entry),
            "package": entry.dist,
            "version": entry.version,
            "target": entry.target,
        }
        for entry in REGISTRY.entries(kind)
    ]


def _weights_row(entry: ZooEntry) -> Row:
    return {
        "kind": WEIGHTS,
        "for": f"{entry.kind} {entry.component}",
        "name": entry.name,
        "architecture": entry.architecture if entry.architecture != entry.component else "",
        "dataset": entry.dataset,
        "default": entry.default,
        "trained_on": str(entry.trained_on),
        "package": entry.source,
    }


def print_tables(tables: dict[str, list[Row]]) -> None:
    """Print each table with its title and its number of rows."""
    console = make_console()
    for name, rows in tables.items():
        title = f"{name} ({len(rows)})"
        console.print(_make_table(title, rows) if rows else title)
        console.print()


def _make_table(title: str, rows: list[Row]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    printed = [name for name in rows[0] if name not in _ONLY_IN_JSON]
    columns = [name for name in printed if any(_format(row[name]) for row in rows)]
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_format(row[name]) for name in columns))
    return table


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return str(value)
