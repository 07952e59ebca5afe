"""A context in which no other machine can be reached."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def no_network() -> Iterator[list[str]]:
    """Make every attempt to reach another machine raise OSError.

    Yield a list to which each attempted address is added.
    """
    attempts: list[str] = []

    def refuse(*args: Any, **_: Any) -> Any:
        address = next((a for a in args if isinstance(a, str | tuple)), "?")
        attempts.append(str(address))
        raise OSError("the network is off in this check")

    with (
        patch.object(socket, "getaddrinfo", refuse),
        patch.object(socket.socket, "connect", refuse),
    ):
        yield attempts
