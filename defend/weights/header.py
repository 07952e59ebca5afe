"""One weights file: verify its sha256, read its header, load its tensors, write it.

Torch is imported only for tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defend.errors import BadWeights
from defend.files import write_file

if TYPE_CHECKING:
    from torch import Tensor

KEY = "defend"  # the entry of this package in a safetensors header
LARGEST_HEADER = 10**8  # bytes; the safetensors format allows no larger header


@dataclass(frozen=True, kw_only=True)
class Header:
    """The description that a weights file carries: its component, its data set and its training."""

    kind: str  # "defense" or "classifier"
    component: str
    dataset: str
    fields: Mapping[str, Any]
    trained_on: str  # "clean", "corrupted" or "adversarial(attack, eps, classifiers)"
    command: str
    seed: int
    commit: str


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A verified file, ready to be loaded into a component."""

    name: str  # its name in a zoo, or its path
    path: Path
    sha256: str
    header: Header


def file_sha256(path: Path, expected: str | None = None) -> str:
    """Return the sha256 of a file.

    Raise BadWeights if it cannot be read or differs from `expected`.
    """
    try:
        with path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise BadWeights(
            f"{path}: cannot be read ({e.strerror}); reinstall the package that ships the file"
        ) from None
    if expected is not None and digest != expected:
        raise BadWeights(
            f"{path}: expected sha256 {expected[:12]}... (zoo.toml), got {digest[:12]}...; "
            "the file is damaged or was replaced: reinstall the package that ships it"
        )
    return digest


def read_header(path: Path) -> Header:
    """Return the header of a weights file, without loading torch.

    Raise BadWeights if it has none.
    """
    try:
        with path.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            if not 0 < size < LARGEST_HEADER:
                raise ValueError("no safetensors header")
            metadata = json.loads(f.read(size)).get("__metadata__", {})
        return Header(**json.loads(metadata[KEY]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        # TypeError and AttributeError: the header is JSON, but not the expected object.
        raise BadWeights(
            f"{path}: not a weights file of defend ({type(e).__name__}: {e}); "
            "write one with `defend train`"
        ) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, float16 widened to float32. Raise BadWeights."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as e:
        raise BadWeights(f"{path}: the file is damaged ({e})") from None
    return {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}


def save_weights(path: Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Write tensors and header as one safetensors file that is complete or absent."""
    from safetensors.torch import save

    fields = {**vars(header), "fields": dict(header.fields)}
    metadata = {KEY: json.dumps(fields, sort_keys=True)}
    on_cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # safetensors' own `save_file` would make a file that only its owner can read.
    write_file(path, save(on_cpu, metadata))
