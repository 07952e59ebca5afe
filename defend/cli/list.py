"""defend list: names from entry points and zoo files. Imports no component, so a broken plugin costs nothing and hides nothing."""

from __future__ import annotations

import json
from typing import Any

import click

from defend import weights
from defend.cli.common import PLURALS, console
from defend.errors import UnknownName, near
from defend.registry import REGISTRY, Kind

KINDS = (*PLURALS, "weights")


@click.command("list")
@click.argument("kind", required=False, metavar="[defenses|attacks|classifiers|datasets|weights]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(kind: str | None, as_json: bool) -> None:
    """What is installed. Reads entry points alone: a plugin is imported when it is used (`defend check NAME` tries it)."""
    tables = {k: rows(k) for k in ([plural(kind)] if kind else KINDS)}
    if as_json:
        for row in (r for table in tables.values() for r in table):
            click.echo(json.dumps(row))
    else:
        show(tables)


def plural(word: str) -> str:
    """Raises UnknownName."""
    found = word if word in KINDS else f"{word}s"
    if found not in KINDS:
        raise UnknownName(f"unknown kind '{word}': expected {', '.join(KINDS)}.{near(word, KINDS)}")
    return found


def rows(kind: str) -> list[dict[str, Any]]:
    if kind == "weights":
        return [_weights_row(w) for w in weights.zoo().values()]
    one: Kind = PLURALS[kind]
    return [
        {
            "kind": one,
            "name": REGISTRY.to_type(e),
            "package": e.dist,
            "version": e.version,
            "target": e.target,
        }
        for e in REGISTRY.entries(one)
    ]


def _weights_row(w: weights.ZooEntry) -> dict[str, Any]:
    row = {name: getattr(w, name) for name in ("name", "dataset", "default", "trained_on")}
    return {"kind": "weights", "for": f"{w.kind} {w.component}", **row, "package": w.source}


def show(tables: dict[str, list[dict[str, Any]]]) -> None:
    from rich.table import Table

    out = console()
    for kind, found in tables.items():
        table = Table(
            title=f"{kind} ({len(found)})",
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
        )
        columns = [c for c in (found[0] if found else ()) if c not in ("kind", "target")]
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in found:
            table.add_row(*(_text(row[c]) for c in columns))
        out.print(table if found else f"{kind} (0)")
        out.print()


def _text(value: Any) -> str:
    return (
        {True: "yes", False: ""}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )
