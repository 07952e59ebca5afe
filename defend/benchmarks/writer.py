"""Write unit files in a thread, so that no attack waits for a disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore
from types import TracebackType

PENDING = 64  # units that may wait to be written; each holds its adversarial images


class Writer:
    """Runs actions one after another, in the order in which they were submitted."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unit-writer")
        self._free = Semaphore(PENDING)

    def submit(self, action: Callable[[], None]) -> None:
        """Run the action later; it must not raise. Waits while too many actions are pending."""
        self._free.acquire()
        self._thread.submit(self._run, action)

    def _run(self, action: Callable[[], None]) -> None:
        try:
            action()
        finally:
            self._free.release()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait until everything is written; after an interrupt only what is being written."""
        self._thread.shutdown(wait=True, cancel_futures=error is not None)
