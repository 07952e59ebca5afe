"""Numbers of numpy and torch as those of Python. No torch, no numpy."""

from __future__ import annotations

import math
import operator
import struct
from typing import Any

from defend.errors import BadParameter

_SHORT_FLOATS = {"float32": "f", "float16": "e"}  # their codes for `struct`
_DIGITS = range(6, 10)  # that may be needed to tell a float32 from its neighbours


def plain_scalar(value: Any) -> Any:
    """Return a scalar of numpy or torch, or an array of no dimensions, as a number of Python.

    Anything else is returned as it is. A float of 32 bits becomes the shortest decimal that means
    it: 0.1, not 0.10000000149.
    """
    if getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    number = value.item()
    code = _SHORT_FLOATS.get(str(value.dtype).removeprefix("torch."))
    return _shorten(number, code) if code else number


def _shorten(number: float, code: str) -> float:
    """Return the shortest decimal that rounds to this float, or k/255 where that is shorter."""
    decimals = [float(f"{number:.{digits}g}") for digits in _DIGITS]
    levels = [round(255 * number) / 255] if math.isfinite(number) else []
    for candidate in (decimals[0], *levels, *decimals):
        if struct.pack(code, candidate) == struct.pack(code, number):
            return candidate
    return number


def plain_list(value: Any) -> Any:
    """Return an array of one dimension as a list of numbers of Python; else as `plain_scalar`."""
    is_row = len(getattr(value, "shape", ())) == 1
    return [plain_scalar(item) for item in value] if is_row else plain_scalar(value)


def whole_number(value: Any, name: str) -> int:
    """Return a whole number of Python, numpy or torch as one of Python. Raise BadParameter."""
    plain = plain_scalar(value)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise BadParameter(f"{name} {plain!r}: expected a whole number")
    return operator.index(plain)
