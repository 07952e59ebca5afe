"""defend show: the card, fields, source and weights of one component."""

from __future__ import annotations

import json
from typing import Any

import click

from defend.cli.common import make_console, resolve_component
from defend.cli.facts import describe_component, describe_weights
from defend.errors import BadParameter
from defend.registry import REGISTRY
from defend.spec import parse, parse_single


@click.command("show")
@click.argument("words", nargs=-1, metavar="[KIND] NAME")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(words: tuple[str, ...], as_json: bool) -> None:
    """Show one component: its card, fields, source and weights.

    KIND is defense, attack, classifier, dataset or weights. It may be left out if only one kind has
    that name.
    """
    if len(words) == 2 and words[0] == "weights":
        facts = describe_weights(words[1])
    else:
        kind, spec = resolve_component(words, "defend show [KIND] NAME")
        if (length := len(parse(spec))) > 1:
            raise BadParameter(
                f"defend show takes one component, got a chain of {length}; name one of them"
            )
        entry = REGISTRY.entry(kind, parse(spec)[0].name)
        facts = describe_component(entry, dict(parse_single(spec, kind).params))
    if as_json:
        click.echo(json.dumps(facts, default=str))
    else:
        print_facts(facts)


def print_facts(facts: dict[str, Any]) -> None:
    """Print facts as a table; the first line is the kind and the name."""
    from rich.table import Table

    console = make_console()
    console.print(f"{facts['kind']} {facts['name']}", style="bold")
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in facts.items():
        if key in ("kind", "name"):
            continue
        first, *others = _format_lines(value)
        table.add_row(key, first)
        for line in others:
            table.add_row("", line)
    console.print(table)


def _format_lines(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [_format(value)]
    return [f"{key}: {_format(item)}" for key, item in value.items()] or ["none"]


def _format_field(field: dict[str, str]) -> str:
    """Return "int = 12 (of NAME)", "int, decided by the weights", or "int (required)"."""
    if field.get("weights") == "":
        return f"{field['type']}, decided by the weights; {field['default']} with weights=untrained"
    if not field["default"]:
        return f"{field['type']} (required)"
    origin = f" (of {field['weights']})" if "weights" in field else ""
    return f"{field['type']} = {field['default']}{origin}"


def _format(value: Any) -> str:
    if isinstance(value, dict) and {"type", "default"} <= set(value):
        return _format_field(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
