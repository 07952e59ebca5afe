"""Specs: "name:key=value,key=value", joined by "+" into chains. Text <-> data, and data -> typed fields. No torch.

Values are numbers, fractions (8/255, exact), true, false, none, and text, quoted where it holds  , : + =  or looks like a number.
str(spec) is canonical: parse(str(spec)) == spec.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import numbers
import re
import sys
import types
import typing
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from typing import Any, ClassVar, dataclass_transform

from defend.errors import BadParameter, BadSpec, near

Value = bool | int | float | Fraction | str | None

_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}
_INT = re.compile(
    r"[+-]?\d+", re.ASCII
)  # int() reads the digits of every script, which are not what they look like
_FRACTION = re.compile(r"[+-]?\d+/\d+", re.ASCII)
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_EXPONENT = re.compile(r"[+-]?[\d.]+[eE]", re.ASCII)  # a "+" after it belongs to the number
_SPECIAL = re.compile(r"[,:+=\"'\s]")
_TOKEN = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\"']")


@dataclass(frozen=True)
class Spec:
    """One component: its name, and the fields that were given."""

    name: str
    params: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        fields = ",".join(f"{key}={write(value)}" for key, value in self.params)
        return f"{self.name}:{fields}" if fields else self.name

    def without(self, key: str) -> tuple[Spec, Value]:
        """The spec without this field, and the field's value (None where it was not given)."""
        return Spec(self.name, tuple(p for p in self.params if p[0] != key)), dict(self.params).get(
            key
        )


def parse(text: str) -> tuple[Spec, ...]:
    """The members of a chain, one or more. Raises BadSpec."""
    return tuple(_parse_one(part, text) for part in _cut(text, "+"))


def parse_single(text: str, kind: str) -> Spec:
    """A spec that may not be a chain."""
    specs = parse(text)
    if len(specs) != 1:
        raise BadSpec(
            f"{kind} {text!r}: only defenses are chained with '+'; give one {kind}, or quote the text that holds a '+'"
        )
    return specs[0]


def canonical(text: str) -> str:
    return "+".join(str(s) for s in parse(text))


def of_table(table: dict[str, Any]) -> Spec:
    """A suite file's table {name = "pgd", steps = 40}. Fractions may be written as text."""
    rest = {
        k: read(v) if isinstance(v, str) and _FRACTION.fullmatch(v) else v
        for k, v in table.items()
        if k != "name"
    }
    name = table.get("name")
    if not isinstance(name, str) or not name or _SPECIAL.search(name):
        raise BadSpec(
            f'a component written as a table needs name = "...", a name alone, got {table!r}'
        )
    if bad := [
        k
        for k, v in rest.items()
        if not k.isidentifier() or not isinstance(v, Value) or v in (math.inf, -math.inf) or v != v
    ]:
        raise BadSpec(
            f"{name}: the values of {', '.join(bad)} must be finite numbers, texts, true or false, under the names of fields"
        )
    return Spec(name, tuple(sorted(rest.items())))


def read(text: str) -> Value:
    """One value. Raises BadSpec."""
    text = text.strip()
    if '"' in text or "'" in text:
        return _unquote(text)
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        if _INT.fullmatch(text):
            return int(text)
        if _FRACTION.fullmatch(text):
            exact = Fraction(text)
            return exact.numerator if exact.denominator == 1 else exact
        value = float(text) if _FLOAT.fullmatch(text) else text
    except ZeroDivisionError:
        raise BadSpec(f"{text}: division by zero; a fraction is written as 8/255") from None
    except ValueError:  # Python reads no integers of more than 4300 digits
        raise BadSpec(f"{text[:20]}...: too long for a number; quote it if it is text") from None
    if value in (math.inf, -math.inf):
        raise BadSpec(f"{text}: too large for a number; quote it if it is text")
    return value


def _unquote(text: str) -> str:
    tokens = _tokens(text)
    if len(tokens) != 1 or len(text) < 2:
        raise BadSpec(f'{text}: quotes go around the whole value, as "a, b"')
    if text[0] == "'":
        return text[1:-1]
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        raise BadSpec(
            f"{text}: a backslash in double quotes needs another one, or use single quotes"
        ) from None


def write(value: Value) -> str:
    """The shortest text that `read` turns into this value."""
    if isinstance(value, str):
        return value if _is_plain(value) else json.dumps(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _is_plain(text: str) -> bool:
    """Is this text read as itself, without quotes?"""
    if not text or _SPECIAL.search(text) or _EXPONENT.fullmatch(text):
        return False
    try:
        return read(text) == text
    except BadSpec:
        return False


def _cut(text: str, at: str) -> list[str]:
    """Split at a character that stands outside quotes (and, for "+", is no sign of a number or of its exponent)."""
    parts, tokens = [""], _tokens(text)
    for token, after in zip_longest(tokens, tokens[1:], fillvalue=""):
        before = parts[-1].rpartition("=")[2].strip() if "=" in parts[-1] else None
        exponent = before and _EXPONENT.fullmatch(before) and after.isdecimal()
        if token == at and not (at == "+" and (before == "" or exponent)):
            parts.append("")
        else:
            parts[-1] += token
    return parts


def _tokens(text: str) -> list[str]:
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text:
        raise BadSpec(f"{text}: a quote is not closed")
    return tokens


def _parse_one(text: str, whole: str) -> Spec:
    name, _, fields = text.partition(":")
    name = name.strip()
    if not name or re.search(r"[,=\"'\s]", name):
        raise BadSpec(
            f"{whole!r}: expected name:key=value,key=value (chains joined by '+'), got {text!r}"
        )
    params: dict[str, Value] = {}
    for item in _cut(fields, ",") if fields.strip() else []:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not key.isidentifier() or not equals or not value.strip():
            a_class = item.strip().isidentifier() and item.strip()[0].isupper()
            raise BadSpec(
                f"{whole!r}: expected key=value, got {item.strip()!r}{'; a class of yours gets its name by an entry point' * a_class}"
            )
        if key in params:
            raise BadSpec(f"{whole!r}: {key} is given twice")
        params[key] = read(value)
    return Spec(name, tuple(sorted(params.items())))


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """A value as the field's annotation wants it. Raises BadParameter."""
    options = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (types.UnionType, typing.Union)
        else (annotation,)
    )
    for option in options:
        fits, typed = _fit(value, option)
        if fits:
            return typed
    wanted = " or ".join(_readable(o) for o in options)
    quote = (
        f'; if text is meant, quote it: "{write(value)}"'
        if str in options and isinstance(value, Value)
        else ""
    )
    raise BadParameter(
        f"{where}={write(value) if isinstance(value, Value) else repr(value)}: expected {wanted}{quote}"
    )


def _fit(value: Any, option: Any) -> tuple[bool, Any]:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if option in (None, type(None)):
        return value is None, None
    if typing.get_origin(option) is typing.Literal:
        same = [
            a
            for a in typing.get_args(option)
            if a == value and isinstance(a, bool) == isinstance(value, bool)
        ]
        return bool(same), same[0] if same else None
    if option is bool:
        return isinstance(value, bool), value
    if option is int:
        whole = number and value == value // 1
        return whole, int(value) if whole else None
    if option is float:
        finite = (
            number and abs(value) <= sys.float_info.max
        )  # a whole number may be larger than any float
        return finite, float(value) if finite else None
    if option is str:  # an unquoted number is none: its spelling is lost, and 4/8 would become 1/2
        return isinstance(value, str), value
    return option in (Any, object) or not isinstance(
        value, Value
    ), value  # no scalar: only Python code can give it


def _readable(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(repr(a) for a in typing.get_args(option))
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "none",
        None: "none",
    }
    return (
        names.get(option)
        or f"a value that only Python code can give ({inspect.formatannotation(option)})"
    )


def one_of(card: object, field: str) -> None:
    """Raises BadParameter where a card's field is none of its annotation's words: a claim that is misspelt would be a claim that nobody checks."""
    known, value = typing.get_args(typing.get_type_hints(type(card))[field]), getattr(card, field)
    if value not in known:
        raise BadParameter(
            f"{type(card).__name__}({field}={value!r}): expected {', '.join(known)}.{near(str(value), known)}"
        )


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class Configured:
    """What defenses, attacks, classifiers and data sets share: annotated fields that become keyword-only dataclass fields."""

    _runtime: ClassVar[frozenset[str]] = (
        frozenset()
    )  # fields that say how it runs, not what it computes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(kw_only=True, eq=False)(cls)

    def require_card(self, example: str) -> None:
        if not hasattr(type(self), "card"):
            raise BadParameter(
                f"{type(self).__name__} has no card, by which it is measured: write card = {example} in the class"
            )

    def validate(self) -> None:
        """Raise BadParameter (use `require`) when fields cannot work."""

    def require(self, ok: bool, field: str, wanted: str) -> None:
        if not ok:
            raise BadParameter(
                f"{type(self).__name__}({field}={getattr(self, field)!r}): expected {wanted}"
            )

    @classmethod
    def fields(cls) -> dict[str, tuple[Any, Any]]:
        """The author's fields: name -> (annotation, default or MISSING)."""
        hints = typing.get_type_hints(cls)
        return {
            f.name: (hints[f.name], f.default)
            for f in dataclasses.fields(cls)
            if f.name not in cls._runtime
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The author's fields with their values, defaults included: goes into the record."""
        return {name: getattr(self, name) for name in self.fields()}


def typed(make: Any, params: dict[str, Any], what: str) -> dict[str, Any]:
    """`params` for a Configured class, each as its annotation wants it. Raises BadParameter, with near names."""
    if not (isinstance(make, type) and issubclass(make, Configured)):
        return params
    hints = typing.get_type_hints(make)
    known = {f.name for f in dataclasses.fields(make)}
    for key in params:
        if key not in known:
            takes = ", ".join(
                f"{k}={write(d) if isinstance(d, Value) else d}"
                for k, (_, d) in make.fields().items()
                if d is not dataclasses.MISSING
            )
            raise BadParameter(
                f"{what} has no field {key!r}.{near(key, known)} It takes {takes or 'none'}."
            )
    missing = [
        k for k, (_, d) in make.fields().items() if d is dataclasses.MISSING and k not in params
    ]
    if missing:
        raise BadParameter(
            f"{what} needs {', '.join(missing)}: write {what.split(chr(39))[1]}:{missing[0]}=..."
        )
    return {key: coerce(value, hints[key], f"{what}: {key}") for key, value in params.items()}
