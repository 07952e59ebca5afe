"""How many images are purified at once: by their number, and by their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

GPU_BATCH_VALUES = 2**24  # pixel values inside `purify` at once on a GPU: 64 MiB of float32
CPU_BATCH_VALUES = 2**23  # at most, on a CPU: 55 colour images of 224x224, 4 of 768x768


def batch_values(device_type: str) -> int:
    """Return how many pixel values are purified at once on a device of this type."""
    return CPU_BATCH_VALUES if device_type == "cpu" else GPU_BATCH_VALUES


def images_at_once(max_batch: int, shape: Sequence[int], device_type: str) -> int:
    """Return how many images of a batch of this shape, (b, ...), are purified at once.

    They are at most max_batch images and `batch_values` pixel values, and at least one image.
    """
    values = max(1, prod(shape[1:]))
    return max(1, min(max_batch, batch_values(device_type) // values))
