"""Budgets of attacks: eps as typed and as a number, lists and ranges of them. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from defend.errors import BadParameter, one_line
from defend.plain_numbers import plain_list, plain_scalar
from defend.spec import Spec, parse_single, read_value

MAX_VALUES = 1000  # a range of more values is a typing error
SAME_EPS = 1e-9  # two eps are equal up to this: one may be typed 8/255, the other .031372549


@dataclass(frozen=True)
class Eps:
    """One eps, as typed and as a number."""

    text: str
    value: float

    @classmethod
    def of(cls, value: float) -> Eps:
        """Return the eps as a paper would write it: 0.3, or 8/255."""
        short, levels = f"{value:.6g}", round(value * 255)
        is_fraction = float(short) != value == levels / 255
        return cls(text=f"{levels}/255" if is_fraction else short, value=value)


def same_eps(a: float, b: float) -> bool:
    """Return True if the two eps differ by rounding alone."""
    return abs(a - b) < SAME_EPS


def parse_eps(value: Any) -> tuple[Eps, ...]:
    """Return the eps of a number, a fraction, a list or a range with both ends, each value once.

    Examples: 0.1, "8/255", "0,8/255", "0:0.3:0.02", [0, "8/255"]. Raises BadParameter.
    """
    value = plain_list(value)
    items = value if isinstance(value, list | tuple) else [value]
    by_value: dict[float, Eps] = {}
    for item in items:
        for eps in _parse_item(item):
            by_value[eps.value] = eps
    if not by_value:
        raise BadParameter("eps: expected at least one number, as 8/255 or 0:0.3:0.02")
    return tuple(by_value.values())


def _parse_item(item: Any) -> Iterator[Eps]:
    if isinstance(item, Eps):
        yield item
    elif not isinstance(item, str):
        yield parse_one_eps(item)
    else:
        for part in item.split(","):
            yield from _parse_range(part) if ":" in part else [parse_one_eps(part)]


def parse_one_eps(item: Any) -> Eps:
    """Return the eps of one number >= 0. Raises BadParameter."""
    item = plain_scalar(item)
    number = read_value(item) if isinstance(item, str) else item
    is_number = isinstance(number, int | float | Fraction) and not isinstance(number, bool)
    value = float(number) if is_number else math.nan  # type: ignore[arg-type]
    if not math.isfinite(value):
        raise BadParameter(
            f"eps {one_line(repr(item))}: expected a number >= 0, as 0.1, 8/255, a list 0,8/255"
            " or a range 0:0.3:0.02"
        )
    if value < 0:
        raise BadParameter(f"eps {item}: expected a number >= 0")
    return Eps(text=str(item).strip(), value=value)


def _parse_range(text: str) -> list[Eps]:
    """Return start:stop:step, both ends included, in exact arithmetic."""
    parts = text.split(":")
    if len(parts) != 3:
        raise BadParameter(f"eps {text!r}: a range is start:stop:step, as 0:0.3:0.02")
    for part in parts:
        parse_one_eps(part)
    start, stop, step = (Fraction(p.strip()) for p in parts)
    if step <= 0 or stop < start:
        raise BadParameter(f"eps {text!r}: expected start <= stop and step > 0")
    if (stop - start) / step >= MAX_VALUES:
        raise BadParameter(f"eps {text!r}: more than {MAX_VALUES} values; give a larger step")
    values = [start + i * step for i in range(int((stop - start) / step) + 1)]
    if any("/" in part for part in parts):
        return [Eps(text=str(v), value=float(v)) for v in values]
    return [Eps(text=f"{float(v):g}", value=float(v)) for v in values]


def take_eps(attack: str) -> tuple[Spec, Eps | None]:
    """Return an attack's spec without eps, and its eps: eps is no field of an attack."""
    typed = parse_single(attack, "attack")
    spec, value = typed.without("eps")
    if "eps" not in dict(typed.params):
        return spec, None
    return spec, parse_one_eps(str(value) if isinstance(value, Fraction) else value)


def check_linf(eps: Eps) -> None:
    """Raise BadParameter for an L-inf eps that no image in [0, 1] can use."""
    if eps.value > 1:
        raise BadParameter(
            f"eps {eps.text}: pixels are in [0, 1], so that an L-inf eps is at most 1;"
            f" for grey levels write {eps.text}/255"
        )
