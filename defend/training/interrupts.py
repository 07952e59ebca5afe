"""Control-C during training: the step in progress is completed, so that its state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # the command line treats SIGTERM as Control-C


class HeldInterrupts:
    """Hold Control-C back while the block runs, so that the caller chooses where to stop.

    The first Control-C is remembered, and the next `check` raises KeyboardInterrupt. A second one
    raises it at once. Signals whose handlers are not Python's own for Control-C are left alone, and
    so is every thread but the main one, where Python runs no handlers.
    """

    def __init__(self) -> None:
        self._pending = False
        self._allowed = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> HeldInterrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is signal.default_int_handler:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if error_type is None:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if Control-C was pressed."""
        if self._pending:
            raise KeyboardInterrupt

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let Control-C interrupt the block at once."""
        self._allowed = True
        try:
            self.check()
            yield
        finally:
            self._allowed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._allowed or self._pending:
            raise KeyboardInterrupt
        self._pending = True
