"""The state of a long attack between two of its rounds, with which an interrupted run goes on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from defend.files import write_file


@dataclass(frozen=True)
class StateFile:
    """A file of tensors that belongs to one attack on one range of images."""

    path: Path

    def read(self) -> dict[str, Tensor]:
        """Return the tensors by name; none if there is no file, or a damaged one."""
        try:
            return load(self.path.read_bytes())
        except (OSError, SafetensorError):
            return {}

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Replace the file, which is complete or absent. Raise OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, save({name: t.contiguous() for name, t in tensors.items()}))

    def remove(self) -> None:
        """Remove the file, and its folder if that is empty then."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # another attack's state is in it, or it never was
            self.path.parent.rmdir()
