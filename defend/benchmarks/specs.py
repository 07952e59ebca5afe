"""Specs of components as a suite may hold them: texts or TOML tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defend.errors import BadParameter
from defend.spec import parse, parse_single, spec_from_table

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
