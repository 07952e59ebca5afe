"""Write rows of a zoo.toml, without a change to any other row.

TOML is written by hand: Python reads it and does not write it. No torch.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from defend.errors import BadWeights, one_line

Row = Mapping[str, Any]
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TABLE = re.compile(r"^[ \t]*\[(?P<key>[^\]\n]*)\]", re.M)


def format_row(name: str, row: Row) -> str:
    """Return the table of one weights file, one line for each key, in the order of the row."""
    lines = [format_pair(key, value) for key, value in row.items()]
    return "\n".join([f"[{_format_key(name)}]", *lines, ""])


def format_pair(key: str, value: Any) -> str:
    """Return a key with its value on one line. Raise BadWeights for a value that no zoo holds."""
    try:
        return f"{_format_key(key)} = {format_value(value)}"
    except BadWeights:
        raise  # it names the inner key
    except (TypeError, ValueError):
        raise BadWeights(
            f"zoo.toml: {key}: expected a finite number, a text, true, false, or a list or table"
            f" of these, got {one_line(value)[:80]}; measure or train again, or leave {key} out"
        ) from None


def format_value(value: Any) -> str:
    """Return a value of JSON as TOML on one line. A table leaves None out: TOML has none.

    Raise TypeError, ValueError for a value that TOML or other readers of records do not hold.
    """
    if isinstance(value, Mapping):
        items = {key: value[key] for key in value if value[key] is not None}
        pairs = [format_pair(key, item) for key, item in items.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, str):
        # TOML has no surrogate pairs, which `ensure_ascii` would write, and no raw DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if value is None:
        raise TypeError("TOML has no null")
    return json.dumps(value, allow_nan=False)


def _format_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else format_value(key)


def put_row(text: str, name: str, row: Row) -> str:
    """Return the text of a zoo.toml with this row: in the place of the old one, or at the end.

    Raise BadWeights if the old row cannot be told from its neighbours.
    """
    span = _find_row(text, name)
    if span:
        start, end = span
        changed = text[:start] + format_row(name, row) + text[end:]
    else:
        gap = "" if not text or text.endswith("\n\n") else "\n"
        newline = "" if not text or text.endswith("\n") else "\n"
        changed = text + newline + gap + format_row(name, row)
    return _verified(text, changed, name, row)


def put_value(text: str, name: str, key: str, value: Any) -> str:
    """Return the text of a zoo.toml with one value of a row replaced or added.

    Raise BadWeights if there is no such row, or if the value does not stand on one line.
    """
    span = _find_row(text, name)
    if span is None:
        raise BadWeights(f"zoo.toml: expected a table [{name}], got none; add it first")
    start, end = span
    row, line = text[start:end], format_pair(key, value)
    place = re.compile(rf"^[ \t]*{re.escape(key)}[ \t]*=.*$", re.M)
    if place.search(row):
        row = place.sub(lambda _: line, row, count=1)
    else:
        row = f"{row.rstrip()}\n{line}\n"
    expected = {**tomllib.loads(text)[name], key: value}
    return _verified(text, text[:start] + row + text[end:], name, expected)


def _find_row(text: str, name: str) -> tuple[int, int] | None:
    """Return where the table of a name starts and ends, with the tables below it.

    Blank lines and comments before the next table belong to that one.
    """
    tables = list(_TABLE.finditer(text))
    own = [match for match in tables if _names(match["key"], name)]
    if not own:
        return None
    later = [m.start() for m in tables if m.start() > own[0].start() and not _names(m["key"], name)]
    start, end = own[0].start(), later[0] if later else len(text)
    for line in reversed(text[start:end].splitlines(keepends=True)):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        end -= len(line)
    return start, end


def _names(key: str, name: str) -> bool:
    """Return True for the key of the table itself, or of a table below it."""
    spellings = (name, json.dumps(name), f"'{name}'")
    return any(key.strip() == s or key.strip().startswith(f"{s}.") for s in spellings)


def _verified(before: str, after: str, name: str, row: Row) -> str:
    """Return the new text. Raise BadWeights if it says more or less than this row."""
    expected = tomllib.loads(before) | tomllib.loads(format_row(name, row))
    if _loads_or_none(after) != expected:
        raise BadWeights(
            f"zoo.toml: expected a table [{name}] with one value on each line, got another layout; "
            "lay it out like that, or change it by hand"
        )
    return after


def _loads_or_none(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
