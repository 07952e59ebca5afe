"""Facts about a component or a file of weights, as `defend show` prints them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from defend.errors import UnknownName, suggest_names
from defend.registry import Entry
from defend.spec import Configured, Value, typed_params, write_value
from defend.weights.zoo import ZooEntry, read_zoos


def describe_component(entry: Entry, params: dict[str, Any]) -> dict[str, Any]:
    """Import a component and return its facts.

    params: fields from a spec, shown in place of their defaults. Raises BrokenPlugin and
    BadParameter.
    """
    component_type = entry.load()
    return {
        "kind": entry.kind,
        "name": entry.full_name,
        "about": inspect.cleandoc(component_type.__doc__ or ""),
        "package": f"{entry.dist} {entry.version}",
        "source": _source_location(component_type),
        "card": _describe_card(component_type),
        "fields": _describe_fields(component_type, entry, params),
        **_describe_network(component_type, entry),
        "weights": {
            name: _summarise_weights(weights, entry.component)
            for name, weights in _fitting_weights(entry).items()
        },
    }


def _fitting_weights(entry: Entry) -> dict[str, ZooEntry]:
    """Return the weights of the zoos that a component can load, by name."""
    wanted = (entry.kind, _architecture(entry))
    zoo = read_zoos().items()
    return {
        name: weights for name, weights in zoo if (weights.kind, weights.architecture) == wanted
    }


def _architecture(entry: Entry) -> str:
    """Return the network of a component: the one that it names, or its own."""
    return getattr(entry.load(), "architecture", "") or entry.component


def _describe_network(component_type: Any, entry: Entry) -> dict[str, Any]:
    """Return the architecture and the fields that are free at load, for learned components."""
    if not hasattr(component_type, "architecture"):
        return {}
    uses = sorted(component_type.uses)
    return {"architecture": _architecture(entry), **({"uses": uses} if uses else {})}


def describe_weights(name: str) -> dict[str, Any]:
    """Return everything that a zoo says about a file of weights. Raises UnknownName."""
    zoo = read_zoos()
    if name not in zoo:
        raise UnknownName(
            f"unknown weights '{name}'.{suggest_names(name, zoo)}"
            f" `defend list weights` shows all {len(zoo)}."
        )
    entry = zoo[name]
    facts = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    return {"kind": "weights", "name": facts.pop("name"), **facts}


def _describe_card(component_type: Any) -> dict[str, Any]:
    card = getattr(component_type, "card", None)
    if dataclasses.is_dataclass(card) and not isinstance(card, type):
        return dataclasses.asdict(card)
    return {}


def _describe_fields(
    component_type: Any, entry: Entry, params: dict[str, Any]
) -> dict[str, dict[str, str]]:
    """Return name -> {"type", "default"}, the default as it is written in a spec.

    A field that weights decide has "weights", too: their name, or "" if the spec names none.
    """
    if isinstance(component_type, type) and issubclass(component_type, Configured):
        signature = dict(component_type.fields())
    else:
        parameters = inspect.signature(component_type).parameters.values()
        signature = {p.name: (p.annotation, p.default) for p in parameters}
    fields = {
        name: {"type": _format_type(annotation), "default": _format_default(default)}
        for name, (annotation, default) in signature.items()
    }
    values = typed_params(component_type, params, f"{entry.kind} '{entry.name}'") if params else {}
    for name, value in values.items():
        if name in fields:
            fields[name]["default"] = write_value(value)
    if "weights" in fields and values.get("weights") != "untrained":
        _add_decided_values(fields, _fitting_weights(entry), values)
    return fields


def _add_decided_values(
    fields: dict[str, dict[str, str]], zoo: dict[str, ZooEntry], values: dict[str, Any]
) -> None:
    """Say of each field that the weights decide what it is; fields of the spec stay as typed."""
    named = zoo.get(str(values.get("weights")))
    for weights in [named] if named else zoo.values():
        for name, value in weights.fields.items():
            if name in fields and name not in values:
                fields[name]["weights"] = named.name if named else ""
                if named:
                    fields[name]["default"] = write_value(value)


def _summarise_weights(entry: ZooEntry, component: str) -> str:
    """Return one line on weights. component: the one that is shown, which may load another's."""
    source = "" if entry.component == component else f"of {entry.component} "
    parts = [
        f"{source}on {entry.dataset}",
        f"trained on {entry.trained_on} images",
        f"licence {entry.licence}",
    ]
    for key, value in {**entry.fields, **entry.measured}.items():
        parts.append(f"{key} {value}")
    if entry.default:
        parts.append("default")
    return ", ".join(parts)


def _source_location(component_type: Any) -> str:
    try:
        line = inspect.getsourcelines(component_type)[1]
        return f"{inspect.getsourcefile(component_type)}:{line}"
    except (OSError, TypeError):  # no Python source, as for a compiled plugin
        return f"{component_type.__module__}:{component_type.__qualname__}"


def _format_type(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "any"
    return inspect.formatannotation(annotation).replace("typing.", "")


def _format_default(default: Any) -> str:
    """Return a default as it is written in a spec, or nothing if the field has none."""
    if default is dataclasses.MISSING or default is inspect.Parameter.empty:
        return ""
    return write_value(default) if isinstance(default, Value) else repr(default)
