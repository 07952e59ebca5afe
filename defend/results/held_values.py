"""Values of a record beside those that its units hold: as JSON, compared, and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isclose
from typing import Any

from pydantic import BaseModel

from defend.hashing import canonical_json

TOLERANCE = 1e-6  # of a number that is computed again, perhaps by another version of numpy


def get_path(mapping: Any, *path: str) -> Any:
    """Return what lies at a path of nested mappings, None if nothing does."""
    for name in path:
        mapping = mapping.get(name) if isinstance(mapping, Mapping) else None
    return mapping


def as_json(value: Any) -> Any:
    """Return the value as JSON holds it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def is_close(a: Any, b: Any) -> bool:
    """Return True if two values of JSON are the same, numbers up to TOLERANCE."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(is_close(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(is_close, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    # A number that is not finite is None in a record.
    return bool(a == b) or (a is None and isinstance(b, float) and b - b != 0)


def format_held(value: Any) -> str:
    """Return the value in a line of text."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping | list | tuple | BaseModel):
        return canonical_json(json.loads(json.dumps(as_json(value), default=str)))
    return str(value)
