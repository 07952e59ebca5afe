"""What differs between two runs beside their outcomes: keys, code, weights, versions, device."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from defend.errors import count_of
from defend.records import Record
from defend.results.cell_pairs import Pair

Header = Mapping[str, Any]
_NAMES = ("dataset", "classifier", "defense", "attack", "surrogate")
_FIELDS = ("n", "seed", "draws", "eot", "threads", "commit", "device")
_DIGITS = 12  # of a hash that are printed
_IMAGES = ("data", "range")  # of a key: which images, which `run_diff` compares by itself


def list_changes(pairs: Iterable[tuple[Pair, Sequence[Header | None]]]) -> tuple[str, ...]:
    """Return a line for each thing that differs, with the number of its cells.

    pairs: the records of a cell in both runs, and the headers of one unit of each.
    """
    values: dict[str, list[str]] = {}
    for records, headers in pairs:
        for name, change in _changes(records, headers):
            values.setdefault(name, []).append(change)
    return tuple(_format_change(name, changes) for name, changes in values.items())


def _format_change(name: str, changes: Sequence[str]) -> str:
    """Return the values before and after, if all cells of this change have the same."""
    cells = count_of(len(changes), "cell")
    if len(set(changes)) == 1:
        return f"{name}: {changes[0]} ({cells})"
    return f"{name}: {len(set(changes))} changes ({cells})"


def _changes(records: Pair, headers: Sequence[Header | None]) -> Iterator[tuple[str, str]]:
    """Yield the name and the values of each fact that differs."""
    facts = [_facts_of(record) for record in records]
    for facts_of_run, header in zip(facts, headers, strict=True):
        if None not in headers:
            facts_of_run |= _facts_of_key(header or {})
    for name in dict.fromkeys([*facts[0], *facts[1]]):
        before, after = (_format(run.get(name)) for run in facts)
        if before != after:
            yield name, f"{before} -> {after}"


def _facts_of(record: Record) -> dict[str, Any]:
    """Return what a record says of how its cell was computed, by words."""
    facts: dict[str, Any] = {name: getattr(record, name) for name in (*_NAMES, *_FIELDS)}
    facts |= {
        "classifier, settings and weights": record.pipeline.classifier,
        "defense, settings and weights": record.pipeline.defense,
    }
    facts |= {f"version of {name}": number for name, number in record.versions.items()}
    facts |= {f"weights {name}": sha256 for name, sha256 in record.weights.items()}
    return facts


def _facts_of_key(header: Header) -> dict[str, Any]:
    """Return everything that a unit's key is made of, but for its images, by words."""
    inputs = {k: v for k, v in header["key_inputs"].items() if k not in _IMAGES}
    facts = {" ".join(path): value for path, value in _flatten(inputs)}
    # Weights are named in the record; seed and the like stand there, too.
    return {k: v for k, v in facts.items() if k not in _FIELDS and " weights" not in f" {k}"}


def _flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the value of each leaf of mappings and lists."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, (*path, str(key)))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _flatten(item, (*path, str(i + 1)))
    else:
        yield path, value


def _format(value: Any) -> str:
    text = "none" if value is None or value == "" else str(value)
    return text[:_DIGITS] if re.fullmatch(r"[0-9a-f]{40,}", text) else text
