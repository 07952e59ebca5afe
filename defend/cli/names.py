"""Names on a command line, looked up before torch is loaded, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from defend.benchmarks.specs import COMPONENT_KINDS
from defend.eps import parse_eps
from defend.registry import REGISTRY, Kind
from defend.spec import parse
from defend.threat_models import NO_CLASSIFIER


def check_names(options: Mapping[str, Any]) -> None:
    """Raise for a component that nobody registers, a spec that cannot be read, and a bad eps.

    options: those of a command, by their names; a list has one component each. Fields are not
    looked at, since that needs the component. Raises UnknownName, AmbiguousName, BadSpec,
    BadParameter.
    """
    for key in COMPONENT_KINDS:
        for value in _as_list(options.get(key)):
            for member_kind, name in _members(str(value), key):
                if (member_kind, name) != ("classifier", NO_CLASSIFIER):
                    REGISTRY.entry(member_kind, name)
    if options.get("eps") is not None:
        parse_eps(options["eps"])


def _members(text: str, key: str) -> Iterator[tuple[Kind, str]]:
    """Yield kind and name of each member; a surrogate is "C" or "DEFENSE+C"."""
    *chained, last = parse(text)
    kind = COMPONENT_KINDS[key]
    for spec in chained:
        yield ("defense" if kind == "classifier" else kind), spec.name
    yield kind, last.name


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
