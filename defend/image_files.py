"""Image files, read the same way wherever they are read: turned upright, 8 bits in each channel."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from defend.errors import BadParameter, one_line

# What Pillow and the decoders below it raise for a file that is damaged or hostile.
READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_DEEP_MODES = ("I", "F")  # of Pillow: 16 or 32 bits, and floats


@contextmanager
def open_file(path: Path) -> Iterator[Image.Image]:
    """Open an image file, whose pixels are not decoded yet, without a warning of a large one.

    Pillow refuses more than twice the number of pixels that it warns of. Raise READ_ERRORS.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as file:
            yield file


def open_upright(path: Path) -> Image.Image:
    """Return the image of a file, decoded and turned as its EXIF data say.

    Raise BadParameter if it cannot be read, or has more than 8 bits in a channel: where white lies
    in such a file is not known.
    """
    try:
        with open_file(path) as file:
            image: Any = ImageOps.exif_transpose(file)
            image.load()
    except READ_ERRORS as e:
        reason = one_line(e) or type(e).__name__
        raise BadParameter(f"{path}: no image that can be read: {reason}") from None
    if image.mode.startswith(_DEEP_MODES):
        raise BadParameter(
            f"{path}: expected 8 bits per channel, got more than 8 bits per channel"
            f" ({image.mode}); convert it to 8 bits"
        )
    upright: Image.Image = image
    return upright
