"""Specs: "name:key=value,key=value", joined by "+" into chains. No torch.

A file of the user stands in place of a name: "./mine.py:MyPurifier,key=value". Quote a path with a
space or another special character.

Values are numbers, fractions (8/255, exact), true, false, none, and text, which is quoted if it
holds one of , : + = or looks like a number. str(spec) is canonical: parse(str(spec)) == (spec,).
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
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from typing import Any, ClassVar, dataclass_transform

from defend.errors import BadParameter, BadSpec, suggest_names
from defend.plain_numbers import plain_scalar

Value = bool | int | float | Fraction | str | None

_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}
# ASCII: int() also reads the digits of other scripts, which may look like other characters.
_INT = re.compile(r"[+-]?\d+", re.ASCII)
_FRACTION = re.compile(r"[+-]?\d+/\d+", re.ASCII)
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_EXPONENT = re.compile(r"[+-]?[\d.]+[eE]", re.ASCII)  # a "+" that follows belongs to the number
_SPECIAL = re.compile(r"[,:+=\"'\s]")
FILE_SUFFIX = ".py"  # of a file of the user
_TOKEN = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\"']")


@dataclass(frozen=True)
class Spec:
    """One component: its name, and the fields that were set, sorted by name."""

    name: str  # a registered name, or PATH.py:ATTRIBUTE
    params: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        fields = ",".join(f"{key}={write_value(value)}" for key, value in self.params)
        if self.file is None:
            return f"{self.name}:{fields}" if fields else self.name
        name = f"{write_value(self.file)}:{self.name.rpartition(':')[2]}"
        return f"{name},{fields}" if fields else name

    @property
    def file(self) -> str | None:
        """The path of the user's file, or None."""
        path, colon, _ = self.name.rpartition(":")
        return path if colon and path.endswith(FILE_SUFFIX) else None

    def without(self, key: str) -> tuple[Spec, Value]:
        """Return the spec without this field, and the field's value (None if it was not set)."""
        params = tuple(param for param in self.params if param[0] != key)
        return Spec(self.name, params), dict(self.params).get(key)


def parse(text: str) -> tuple[Spec, ...]:
    """Return the members of a chain, one or more. Raise BadSpec."""
    return tuple(_parse_member(member, text) for member in _split(text, "+"))


def parse_single(text: str, kind: str) -> Spec:
    """Return the spec of a component that cannot be chained. Raise BadSpec."""
    specs = parse(text)
    if len(specs) != 1:
        raise BadSpec(
            f"{kind} {text!r}: only defenses are chained with '+'; "
            f"give one {kind}, or quote the text that holds a '+'"
        )
    return specs[0]


def canonical_spec(text: str) -> str:
    """Return the canonical spelling of a spec or a chain. Raise BadSpec."""
    return "+".join(str(spec) for spec in parse(text))


def is_name(text: str) -> bool:
    """Return True for a text that names a component: a bare name, or PATH.py:ATTRIBUTE."""
    is_bare = bool(text) and not _SPECIAL.search(text)
    return is_bare or Spec(text).file is not None


def is_fraction(text: str) -> bool:
    """Return True for a text such as 8/255."""
    return _FRACTION.fullmatch(text) is not None


def read_value(text: str) -> Value:
    """Return the value that a text spells. Raise BadSpec."""
    text = text.strip()
    if '"' in text or "'" in text:
        return _unquote(text)
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = _read_number(text)
    except ZeroDivisionError:
        raise BadSpec(f"{text}: division by zero; a fraction is written as 8/255") from None
    except ValueError:  # Python reads no integers of more than 4300 digits
        raise BadSpec(f"{text[:20]}...: too long for a number; quote it if it is text") from None
    if value in (math.inf, -math.inf):
        raise BadSpec(f"{text}: too large for a number; quote it if it is text")
    return value


def _read_number(text: str) -> Value:
    """Return the number that a text spells, or the text itself if it is not a number."""
    if _INT.fullmatch(text):
        return int(text)
    if is_fraction(text):
        fraction = Fraction(text)
        return fraction.numerator if fraction.denominator == 1 else fraction
    return float(text) if _FLOAT.fullmatch(text) else text


def _unquote(text: str) -> str:
    tokens = _tokenize(text)
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


def write_value(value: Value) -> str:
    """Return the shortest text that `read_value` turns into this value."""
    if isinstance(value, str):
        return value if _is_plain(value) else json.dumps(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _is_plain(text: str) -> bool:
    """Return True for a text that is read as itself without quotes."""
    if not text or _SPECIAL.search(text) or _EXPONENT.fullmatch(text):
        return False
    try:
        return read_value(text) == text
    except BadSpec:
        return False


def _split(text: str, separator: str) -> list[str]:
    """Split at a character outside of quotes. A "+" that belongs to a number does not separate."""
    parts = [""]
    tokens = _tokenize(text)
    for token, following in zip_longest(tokens, tokens[1:], fillvalue=""):
        if token == separator and not (token == "+" and _in_number(parts[-1], following)):
            parts.append("")
        else:
            parts[-1] += token
    return parts


def _in_number(before: str, after: str) -> bool:
    """Return True for a "+" between these texts that is the sign of a number or of its exponent."""
    if "=" not in before:
        return False
    value = before.rpartition("=")[2].strip()
    return value == "" or (_EXPONENT.fullmatch(value) is not None and after.isdecimal())


def _tokenize(text: str) -> list[str]:
    """Cut a text into single characters and quoted texts.

    Raise BadSpec for a quote that is not closed.
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text:
        raise BadSpec(f"{text}: a quote is not closed")
    return tokens


def _parse_member(text: str, chain: str) -> Spec:
    """Return the spec of one member. chain: the text that the user wrote, for messages."""
    name, *rest = _split(text, ":")
    name, fields = name.strip(), ":".join(rest)
    is_quoted = name[:1] in ('"', "'")
    path = _unquote(name) if is_quoted else name
    if path.endswith(FILE_SUFFIX):
        name, fields = _parse_attribute(path, fields, chain)
    elif not name or re.search(r"[,=\"'\s]", name):
        raise BadSpec(
            f"{chain!r}: expected name:key=value,key=value (chains joined by '+'), got {text!r}"
        )
    params: dict[str, Value] = {}
    items = _split(fields, ",") if fields.strip() else []
    for item in items:
        key, value = _parse_field(item, chain)
        if key in params:
            raise BadSpec(f"{chain!r}: {key} is given twice")
        params[key] = value
    return Spec(name, tuple(sorted(params.items())))


def _parse_attribute(path: str, text: str, chain: str) -> tuple[str, str]:
    """Return the name PATH.py:ATTRIBUTE and the text of the fields of "ATTRIBUTE,key=value"."""
    attribute, _, fields = text.partition(",")
    if not attribute.strip().isidentifier():
        raise BadSpec(
            f"{chain!r}: expected {path}:NAME,key=value with the name of a class or a function in"
            f" that file, got {attribute.strip() or 'no name'!r}"
        )
    return f"{path}:{attribute.strip()}", fields


def _parse_field(text: str, chain: str) -> tuple[str, Value]:
    """Return the key and the value of "key=value". Raise BadSpec."""
    key, equals, value = text.partition("=")
    key, text = key.strip(), text.strip()
    if not key.isidentifier() or not equals or not value.strip():
        looks_like_class = text.isidentifier() and text[0].isupper()
        hint = "; a class of yours is named by its file, ./FILE.py:NAME" if looks_like_class else ""
        raise BadSpec(f"{chain!r}: expected key=value, got {text!r}{hint}")
    return key, read_value(value)


def coerce(value: Any, annotation: Any, field: str) -> Any:
    """Return a value in the type of the field's annotation. Raise BadParameter if it does not fit.

    field: the start of the message, such as "attack 'pgd': steps".
    """
    value = plain_scalar(value)
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    options = typing.get_args(annotation) if union else (annotation,)
    for option in options:
        fits, converted = _convert(value, option)
        if fits:
            return converted
    spelling = write_value(value) if isinstance(value, Value) else repr(value)
    expected = " or ".join(_describe(option) for option in options)
    may_be_text = str in options and isinstance(value, Value)
    hint = f'; if text is meant, quote it: "{spelling}"' if may_be_text else ""
    raise BadParameter(f"{field}={spelling}: expected {expected}{hint}")


def _convert(value: Any, option: Any) -> tuple[bool, Any]:
    """Return whether a value fits one type of an annotation, and the value in that type."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if option in (None, type(None)):
        return value is None, None
    if typing.get_origin(option) is typing.Literal:
        return _convert_literal(value, typing.get_args(option))
    if option is bool:
        return isinstance(value, bool), value
    if option is int:
        integral = number and value == value // 1
        return integral, int(value) if integral else None
    if option is float:
        # An integer may be larger than any float.
        finite = number and abs(value) <= sys.float_info.max
        return finite, float(value) if finite else None
    if option is str:
        # An unquoted number is not text: its spelling is lost, and 4/8 would become 1/2.
        return isinstance(value, str), value
    # For other types only Python code can give a value; a scalar from a spec does not fit.
    return option in (Any, object) or not isinstance(value, Value), value


def _convert_literal(value: Any, literals: Iterable[Any]) -> tuple[bool, Any]:
    for literal in literals:
        if literal == value and isinstance(literal, bool) == isinstance(value, bool):
            return True, literal
    return False, None


def _describe(option: Any) -> str:
    """Return the words for a type of an annotation in an error."""
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(repr(literal) for literal in typing.get_args(option))
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "none",
        None: "none",
    }
    if option in words:
        return words[option]
    return f"a value that only Python code can give ({inspect.formatannotation(option)})"


def check_choice(card: object, field: str) -> None:
    """Raise BadParameter if a card's field is not one of the words of its annotation.

    A misspelt claim would be a claim that nothing checks.
    """
    choices = typing.get_args(typing.get_type_hints(type(card))[field])
    value = getattr(card, field)
    if value not in choices:
        raise BadParameter(
            f"{type(card).__name__}({field}={value!r}): expected {', '.join(choices)}."
            f"{suggest_names(str(value), choices)}"
        )


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class Configured:
    """Base of defenses, attacks, classifiers and data sets: annotated fields become keyword-only
    dataclass fields.
    """

    # Fields that say how a component runs, not what it computes.
    _runtime: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(kw_only=True, eq=False)(cls)

    def require_card(self, example: str) -> None:
        """Raise BadParameter if the class has no card. example: a card to write."""
        if not hasattr(type(self), "card"):
            raise BadParameter(
                f"{type(self).__name__} has no card, by which it is measured: "
                f"write card = {example} in the class"
            )

    def validate(self) -> None:
        """Raise BadParameter (use `require`) if the fields cannot work."""

    def require(self, ok: bool, field: str, wanted: str) -> None:
        """Raise BadParameter unless `ok`. wanted: the values that the field may have."""
        if not ok:
            raise BadParameter(
                f"{type(self).__name__}({field}={getattr(self, field)!r}): expected {wanted}"
            )

    @classmethod
    def fields(cls) -> dict[str, tuple[Any, Any]]:
        """Return the author's fields: name -> (annotation, default or MISSING)."""
        hints = typing.get_type_hints(cls)
        return {
            field.name: (hints[field.name], field.default)
            for field in dataclasses.fields(cls)
            if field.name not in cls._runtime
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The author's fields with their values, defaults included, as records store them."""
        return {name: plain_scalar(getattr(self, name)) for name in self.fields()}


def typed_params(component_type: Any, params: dict[str, Any], label: str) -> dict[str, Any]:
    """Return the params of a Configured class in the types of its annotations.

    label: the component in messages, its name in single quotes, such as "attack 'pgd'". Raise
    BadParameter for an unknown, missing or misfitting field.
    """
    if not (isinstance(component_type, type) and issubclass(component_type, Configured)):
        return params
    hints = typing.get_type_hints(component_type)
    fields = component_type.fields()
    known = {field.name for field in dataclasses.fields(component_type)}
    for key in params:
        if key not in known:
            raise BadParameter(
                f"{label} has no field {key!r}.{suggest_names(key, known)} "
                f"It takes {_list_defaults(fields) or 'none'}."
            )
    missing = [
        name
        for name, (_, default) in fields.items()
        if default is dataclasses.MISSING and name not in params
    ]
    if missing:
        name = label.split("'")[1]
        raise BadParameter(f"{label} needs {', '.join(missing)}: write {name}:{missing[0]}=...")
    return {key: coerce(value, hints[key], f"{label}: {key}") for key, value in params.items()}


def _list_defaults(fields: dict[str, tuple[Any, Any]]) -> str:
    """Return the fields that have a default, as key=value."""
    pairs = []
    for name, (_, default) in fields.items():
        if default is not dataclasses.MISSING:
            text = write_value(default) if isinstance(default, Value) else str(default)
            pairs.append(f"{name}={text}")
    return ", ".join(pairs)
