"""defend show: what a component says about itself, and where it comes from."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import click

from defend import weights
from defend.cli.common import component, console
from defend.errors import UnknownName, near
from defend.registry import REGISTRY, Entry
from defend.spec import Configured, Value, parse, parse_single, typed, write


@click.command("show")
@click.argument("words", nargs=-1, metavar="[KIND] NAME")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(words: tuple[str, ...], as_json: bool) -> None:
    """One component: its card, fields, source and weights. KIND: defense, attack, classifier, dataset or weights."""
    if len(words) == 2 and words[0] == "weights":
        facts = describe_weights(words[1])
    else:
        kind, spec = component(words, "defend show [KIND] NAME")
        facts = describe(
            REGISTRY.entry(kind, parse(spec)[0].name), dict(parse_single(spec, kind).params)
        )
    if as_json:
        click.echo(json.dumps(facts, default=str))
    else:
        print_facts(facts)


def describe(entry: Entry, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Imports the component. given: fields as in a spec, shown in place of the defaults. Raises BrokenPlugin, BadParameter."""
    made = entry.load()
    values = typed(made, dict(given), f"{entry.kind} '{entry.name}'") if given else {}
    card = getattr(made, "card", None)
    return {
        "kind": entry.kind,
        "name": entry.full_name,
        "about": inspect.cleandoc(made.__doc__ or ""),
        "package": f"{entry.dist} {entry.version}",
        "source": _file(made),
        "card": dataclasses.asdict(card)
        if dataclasses.is_dataclass(card) and not isinstance(card, type)
        else {},
        "fields": {
            name: {**field, **({"default": write(values[name])} if name in values else {})}
            for name, field in fields(made).items()
        },
        "weights": {
            w.name: _line(w)
            for w in weights.zoo().values()
            if (w.kind, w.component) == (entry.kind, entry.component)
        },
    }


def fields(made: Any) -> dict[str, dict[str, str]]:
    """name -> type and default, as one writes them in a spec."""
    if isinstance(made, type) and issubclass(made, Configured):
        return {
            name: {"type": _type(hint), "default": _default(default)}
            for name, (hint, default) in made.fields().items()
        }
    parameters = inspect.signature(made).parameters.values()
    return {
        p.name: {"type": _type(p.annotation), "default": _default(p.default)} for p in parameters
    }


def describe_weights(name: str) -> dict[str, Any]:
    """Raises UnknownName."""
    zoo = weights.zoo()
    if name not in zoo:
        raise UnknownName(
            f"unknown weights '{name}'.{near(name, zoo)} `defend list weights` shows all {len(zoo)}."
        )
    row = {f.name: getattr(zoo[name], f.name) for f in dataclasses.fields(zoo[name])}
    return {"kind": "weights", "name": row.pop("name"), **row}


def print_facts(facts: dict[str, Any]) -> None:
    from rich.table import Table

    out = console()
    out.print(f"{facts.pop('kind')} {facts.pop('name')}", style="bold")
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in facts.items():
        for i, line in enumerate(_lines(value)):
            table.add_row("" if i else key, line)
    out.print(table)


def _lines(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [str(value)]
    return [f"{key}: {_one(v)}" for key, v in value.items()] or ["none"]


def _one(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"type", "default"}:
        return (
            f"{value['type']} = {value['default']}"
            if value["default"]
            else f"{value['type']} (must be given)"
        )
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _line(w: weights.ZooEntry) -> str:
    """In a few words."""
    parts = [f"on {w.dataset}", f"trained on {w.trained_on} images", f"licence {w.licence}"]
    parts += [f"{k} {v}" for k, v in {**w.fields, **w.measured}.items()]
    return ", ".join([*parts, "default"] if w.default else parts)


def _file(made: Any) -> str:
    try:
        return f"{inspect.getsourcefile(made)}:{inspect.getsourcelines(made)[1]}"
    except (OSError, TypeError):  # no Python source, as for a compiled plugin
        return f"{made.__module__}:{made.__qualname__}"


def _type(hint: Any) -> str:
    return (
        "any"
        if hint is inspect.Parameter.empty
        else inspect.formatannotation(hint).replace("typing.", "")
    )


def _default(default: Any) -> str:
    """As one writes it in a spec; nothing where there is none."""
    if default is dataclasses.MISSING or default is inspect.Parameter.empty:
        return ""
    return write(default) if isinstance(default, Value) else repr(default)
