"""Standard output that may be closed or full: a command goes on, and says at its end what is lost.

A reader such as `head` closes a pipe before all is printed. No file may be lost by that.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class LossyWriter(io.RawIOBase):
    """Writes to a file descriptor; after its first error everything else is dropped."""

    def __init__(self, descriptor: int, is_open: bool = True) -> None:
        super().__init__()
        self._descriptor, self._is_open = descriptor, is_open
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Return True, as a stream must."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return True for a terminal."""
        return self._is_open and os.isatty(self._descriptor)

    def write(self, data: object, /) -> int:
        """Write some bytes and return how many; all of them once there was an error."""
        view = memoryview(data)  # type: ignore[arg-type]
        if self.error is None:
            try:
                if self._is_open:
                    return os.write(self._descriptor, view)
                self.error = OSError(errno.EBADF, "it is closed")
            except OSError as e:
                self.error = e
        return view.nbytes


@contextmanager
def lossy_streams() -> Iterator[LossyWriter | None]:
    """Let stdout and stderr drop what they cannot write while the block runs.

    Yield the writer of stdout, whose `error` says what was lost, once the stream is flushed.
    Streams that someone has put in their place are left alone; then yield None.
    """
    if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        yield None
        return
    before = sys.stdout, sys.stderr
    out, err = LossyWriter(1, before[0] is not None), LossyWriter(2, before[1] is not None)
    for descriptor, stream in enumerate(before, 1):
        if stream is None:
            _reserve(descriptor)
        else:
            with suppress(OSError):
                stream.flush()
    sys.stdout, sys.stderr = _open(out, before[0]), _open(err, before[1])
    try:
        yield out
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _open(writer: LossyWriter, original: TextIO | None) -> TextIO:
    """Return a text stream on the writer, with the encoding of the original."""
    is_error_stream = writer.fileno() == 2
    return io.TextIOWrapper(
        io.BufferedWriter(writer),
        encoding=original.encoding if original is not None else "utf-8",
        errors=original.errors if original is not None else "backslashreplace",
        line_buffering=is_error_stream or writer.isatty(),
    )


def _reserve(descriptor: int) -> None:
    """Open nothing at a closed descriptor, so that no file of ours is opened there."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDONLY)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
