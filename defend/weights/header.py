"""One weights file: verify its sha256, read its header, load its tensors, write it.

Torch is imported only for tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

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

    Raise BadWeights if the file cannot be read, has no header, or has one with other fields.
    """
    try:
        values = _read_json(path)
    except OSError as e:
        raise BadWeights(
            f"{path}: cannot be read ({e.strerror}); give the path of a file that can be read"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        # TypeError and AttributeError: the header is JSON, but not the expected object.
        raise _not_weights(path, f"{type(e).__name__}: {e}") from None
    _check_fields(path, values)
    return Header(**values)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of this package in the header of a safetensors file."""
    with path.open("rb") as f:
        size = int.from_bytes(f.read(8), "little")
        if not 0 < size < LARGEST_HEADER:
            raise ValueError("no safetensors header")
        metadata = json.loads(f.read(size)).get("__metadata__", {})
    values = json.loads(metadata[KEY])
    if not isinstance(values, dict):
        raise TypeError(f"expected a JSON object, got {type(values).__name__}")
    return values


def _check_fields(path: Path, values: Mapping[str, Any]) -> None:
    """Raise BadWeights unless the values are those of all fields of Header, in their types."""
    types = _field_types()
    unknown = sorted(set(values) - set(types))
    if unknown:
        raise BadWeights(
            f"{path}: expected a header with the fields {', '.join(types)}, got also"
            f" {', '.join(unknown)}; a newer version of defend wrote it: update defend"
        )
    for name, expected in types.items():
        if name not in values:
            raise _not_weights(path, f"the header has no field {name}")
        if not isinstance(values[name], expected):
            received = type(values[name]).__name__
            raise _not_weights(path, f"{name}: expected {expected.__name__}, got {received}")


def _field_types() -> dict[str, type]:
    """Return the type of each field of Header; a Mapping is a dict in JSON."""
    hints = get_type_hints(Header)
    return {name: dict if name == "fields" else hint for name, hint in hints.items()}


def _not_weights(path: Path, reason: str) -> BadWeights:
    return BadWeights(
        f"{path}: not a weights file of defend ({reason}); write one with `defend train`"
    )


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
