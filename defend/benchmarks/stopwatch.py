"""Measure seconds of work on a device without making the host wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds, and the images, of several pieces of work."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.images = 0

    @contextmanager
    def measure(self, images: int) -> Iterator[None]:
        """Measure the work inside the block, done on so many images."""
        self.images += images
        if self._is_cuda:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            stop.record()
            self._events.append((start, stop))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    @property
    def seconds(self) -> float:
        """Return the sum; on a GPU this waits until the measured work has ended."""
        for start, stop in self._events:
            stop.synchronize()
            self._seconds += start.elapsed_time(stop) / 1000
        self._events.clear()
        return self._seconds

    @property
    def images_per_second(self) -> float:
        """Return the rate over everything that was measured."""
        return self.images / max(self.seconds, 1e-9)
