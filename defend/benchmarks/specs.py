"""Specs of components as a suite may hold them: texts or TOML tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from defend.errors import BadParameter, BadSpec
from defend.registry import Kind
from defend.spec import Spec, Value, is_fraction, is_name, parse, parse_single, read_value

# The keys of a suite that hold components, singular and plural, and the kind of each.
COMPONENT_KINDS: dict[str, Kind] = {
    "dataset": "dataset",
    "classifier": "classifier",
    "classifiers": "classifier",
    "defense": "defense",
    "defenses": "defense",
    "attack": "attack",
    "attacks": "attack",
    "surrogate": "classifier",
    "surrogates": "classifier",
}
_RUNTIME_FIELDS = ("seed", "device", "clip_values", "channels_first")
_SINGLE_KINDS = ("classifier", "attack", "dataset", "gradient", "task")


def component_text(value: Any, kind: str) -> str:
    """Return a component's spec as typed, or as a table writes it.

    Raises BadParameter for fields that say how a purifier runs, and for untrained weights.
    """
    if not isinstance(value, str | Mapping):
        raise BadParameter(
            f'{kind} {value!r}: expected name:key=value,... or a table with name = "..."'
        )
    text = value if isinstance(value, str) else str(spec_from_table(dict(value)))
    specs = (parse_single(text, kind),) if kind in _SINGLE_KINDS else parse(text)
    for spec in specs:
        spec_kind = _surrogate_kind(spec is specs[-1]) if kind == "surrogate" else kind
        for key, field_value in spec.params:
            if spec_kind == "defense" and key in _RUNTIME_FIELDS:
                raise BadParameter(
                    f"{kind} {text!r}: {key}= says how a purifier runs, not what it is: leave it"
                    " out (--seed and --device are options)"
                )
            if (key, field_value) == ("weights", "untrained"):
                raise BadParameter(
                    f"{spec_kind} {text!r}: weights=untrained measures nothing; train it with"
                    f" `defend train {spec_kind} {spec.name}` or name its weights"
                )
    return text


def _surrogate_kind(is_last: bool) -> str:
    """A surrogate is "C" or "DEFENSE+C": its last member is the classifier."""
    return "classifier" if is_last else "defense"


def spec_from_table(table: dict[str, Any]) -> Spec:
    """Return the spec of a suite file's table, such as {name = "pgd", steps = 40}.

    Fractions may be written as text. Raise BadSpec.
    """
    params = {key: _read_fraction(value) for key, value in table.items() if key != "name"}
    name = table.get("name")
    if not isinstance(name, str) or not is_name(name):
        raise BadSpec(
            f'a component written as a table needs name = "...", a name alone, got {table!r}'
        )
    bad = [key for key, value in params.items() if not key.isidentifier() or not _is_value(value)]
    if bad:
        raise BadSpec(
            f"{name}: the values of {', '.join(bad)} must be finite numbers, texts, true or false, "
            "under the names of fields"
        )
    return Spec(name, tuple(sorted(params.items())))


def _read_fraction(value: Any) -> Any:
    if isinstance(value, str) and is_fraction(value):
        return read_value(value)
    return value


def _is_value(value: Any) -> bool:
    """Return True for a value that a spec can hold: numbers are finite."""
    if not isinstance(value, Value):
        return False
    return value not in (math.inf, -math.inf) and value == value
