"""torchvision's own data sets: read from the data root, or downloaded if the network allows it."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from defend.errors import MissingData

T = TypeVar("T")

# Seconds without a byte until a mirror counts as unreachable; torchvision itself has no limit.
TIMEOUT = 10.0

# What torchvision's readers raise on damaged files.
READ_ERRORS = (
    AssertionError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_or_download(build: Callable[[bool], T], expected: Path, name: str) -> T:
    """Return torchvision's data set from the folder `expected`, downloading it if it is absent.

    build(download) constructs the data set. Raises MissingData, naming the expected path and how to
    get the data.
    """
    absent = [folder for folder in (expected, expected.parent) if not folder.exists()]
    try:
        try:
            return build(False)
        except RuntimeError:  # torchvision raises it for absent files, and for some damaged ones
            with _quiet_download():
                return build(True)
    except READ_ERRORS as e:
        _remove_empty(absent)
        raise MissingData(_describe_failure(expected, name, e)) from None


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that torchvision created before it asked the network."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _describe_failure(expected: Path, name: str, e: Exception) -> str:
    """Return the message for data that is damaged, or absent and not available."""
    text = str(e).strip() or "no reason given"
    reason = f"{type(e).__name__}: {text}".splitlines()[0].rstrip(":")
    if expected.is_dir() and any(expected.iterdir()):
        return (
            f"{name}: the files in {expected} are damaged or incomplete ({reason}); delete them and"
            " run this again, or copy them anew"
        )
    return (
        f"{name}: expected its files in {expected}, and they could not be downloaded ({reason});"
        f" put the files of torchvision's {name} there, or give their folder by --data-root or"
        " DEFEND_DATA"
    )


@contextlib.contextmanager
def _quiet_download() -> Iterator[None]:
    """Send torchvision's output to stderr, because stdout is for records, and limit the wait."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(previous)
