"""torchvision's own data sets: read where they lie, fetched where the network allows, one clear line where neither works."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from defend.errors import MissingData

T = TypeVar("T")
PATIENCE = 10.0  # seconds without a byte until a mirror counts as unreachable; torchvision itself would wait for ever
FAILURES = (
    AssertionError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)  # what its readers raise on damaged files


def fetched(make: Callable[[bool], T], expected: Path, name: str) -> T:
    """make(download) builds torchvision's data set. Raises MissingData, naming the expected path and how to get the data."""
    absent = [folder for folder in (expected, expected.parent) if not folder.exists()]
    try:
        try:
            return make(False)
        except RuntimeError:  # torchvision's word for "not there", and for some of what is damaged
            with _quiet_download():
                return make(True)
    except FAILURES as e:
        for folder in absent:  # torchvision makes them before it asks the network
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise MissingData(_message(expected, name, _first_line(e))) from None


def _message(expected: Path, name: str, reason: str) -> str:
    if expected.is_dir() and any(expected.iterdir()):
        return f"{name}: the files in {expected} are damaged or incomplete ({reason}). Delete them and run this again, or copy them anew"
    where = "or say where they are with --data-root or DEFEND_DATA"
    return f"{name}: not in {expected}, and it could not be downloaded ({reason}). Put the files of torchvision's {name} there, {where}"


@contextlib.contextmanager
def _quiet_download() -> Iterator[None]:
    """Standard output belongs to records; and a network that swallows packets must not hold the command up."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _first_line(e: Exception) -> str:
    return f"{type(e).__name__}: {str(e).strip() or 'no reason given'}".splitlines()[0].rstrip(":")
