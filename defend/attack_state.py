"""The state of a long attack between two of its rounds, with which an interrupted run goes on."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from defend.files import write_file

_SECONDS = "seconds"


@dataclass
class StateFile:
    """A file of tensors that belongs to one attack on one range of images.

    It also holds the seconds that the attack has taken, over all its interruptions.
    """

    path: Path
    earlier_seconds: float = field(init=False)  # before this object was made
    _start: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.earlier_seconds = self._load().get(_SECONDS, torch.zeros(1)).item()
        self._start = time.perf_counter()

    def read(self) -> dict[str, Tensor]:
        """Return the tensors by name; none if there is no file, or a damaged one."""
        tensors = self._load()
        tensors.pop(_SECONDS, None)
        return tensors

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Replace the file, which is complete or absent. Raise OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        seconds = self.earlier_seconds + time.perf_counter() - self._start
        state = {**tensors, _SECONDS: torch.tensor([seconds], dtype=torch.float64)}
        write_file(self.path, save({name: t.contiguous() for name, t in state.items()}))

    def _load(self) -> dict[str, Tensor]:
        try:
            return load(self.path.read_bytes())
        except (OSError, SafetensorError):
            return {}

    def remove(self) -> None:
        """Remove the file, and its folder if that is empty then."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # another attack's state is in it, or it never was
            self.path.parent.rmdir()
