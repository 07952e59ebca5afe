"""Whether an image fits into memory while it is purified: one that does not is refused in time.

Without the check the kernel ends the process, and with it all other images.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from defend.errors import BadParameter, Mismatch

if TYPE_CHECKING:
    from defend.purifier import Purifier

# Bytes for each value of a pixel: the growth of the process for one colour image of 1024x1024 was
# 11 (bitdepth), 58 (jpeg), 79 (tvm), 179 (robust-codec) and 870 (comdefend).
LEAST_BYTES = 40  # to decode the image, to write it and to compare both
MOST_BYTES = 1000  # where so much is free, nothing is measured
PROBE_SIDE = 512  # pixels of the image on which a purifier is measured
_CHANNELS = 3
_CGROUP = Path("/sys/fs/cgroup")
_PEAK = Path("/proc/self/clear_refs")


def check_memory(path: Path, purifier: Purifier) -> None:
    """Raise BadParameter if an image file is too large to be purified in the memory that is free.

    A file that is no image passes: reading it says what is wrong.
    """
    values = _CHANNELS * (pixels := _count_pixels(path))
    available = available_memory()
    is_on_cpu = purifier._device.type == "cpu"  # elsewhere it is refused by an error
    if available is None or not is_on_cpu or values * MOST_BYTES <= available:
        return
    needed = values * _measure_once(purifier)
    if needed <= available:
        return
    raise BadParameter(
        f"{path}: {pixels / 1e6:.0f} megapixels would take about {needed / 1e9:.0f} GB to"
        f" purify, and {available / 1e9:.0f} GB are free; make it smaller, or cut it into tiles"
    )


def measure_bytes(purifier: Purifier) -> float:
    """Return the bytes that a purifier takes for each value of a pixel, measured on a small image.

    It is LEAST_BYTES where the system does not say, or the purifier takes no such image.
    """
    import torch

    shape = (1, max(purifier.card.channels), PROBE_SIDE, PROBE_SIDE)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    _give_back()
    try:
        _PEAK.write_text("5")  # the peak begins again at the present size
        before = _status("VmRSS")
        with torch.no_grad():
            purifier.purified(x)
        grown = _status("VmHWM") - before
    except (OSError, KeyError, Mismatch):
        return LEAST_BYTES
    return max(LEAST_BYTES, grown / x.numel())


_measure_once = lru_cache(maxsize=1)(measure_bytes)  # one purifier purifies many images


def _give_back() -> None:
    """Return freed memory to the system: what the allocator holds would hide what is taken anew."""
    with suppress(OSError, AttributeError):  # of the GNU library alone
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    """Return a size of this process in bytes, as /proc has it. Raises OSError, KeyError."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields[field].split()[0]) * 1024


def _count_pixels(path: Path) -> int:
    """Return height times width of an image file from its header, 0 if it cannot be read."""
    from defend.image_files import READ_ERRORS, open_file

    try:
        with open_file(path) as image:
            return image.width * image.height
    except READ_ERRORS:
        return 0


def available_memory() -> int | None:
    """Return the bytes that this process may still take, None where the system does not say."""
    limits = [_free_of_machine(), _free_of_cgroup()]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=None)


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux: all of its memory
        return _whole_memory()


def _whole_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _free_of_cgroup() -> int | None:
    """Return what a container may still take, None without a limit."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        cached = int(dict(line.split() for line in lines)["inactive_file"])
        return limit - used + cached
    except (OSError, ValueError, KeyError):  # "max", or no container
        return None
