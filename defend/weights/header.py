"""One weights file: verify its sha256, read its header, load its tensors, write it.

Torch is imported only for tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defend.errors import BadParameter, BadWeights
from defend.files import write_file
from defend.trained_on import TrainedOn, read_trained_on

if TYPE_CHECKING:
    from torch import Tensor

KEY = "defend"  # the entry of this package in a safetensors header
LARGEST_HEADER = 10**8  # bytes; the safetensors format allows no larger header


@dataclass(frozen=True, kw_only=True)
class Header:
    """The description that a weights file carries: its component, its data set and its training."""

    kind: str  # "defense" or "classifier"
    component: str  # the one that was trained
    architecture: str  # the network; every component that declares it may load the file
    dataset: str
    fields: Mapping[str, Any]  # those that shape the network, and the trained values of the others
    trained_on: TrainedOn
    started_from: str = ""  # the sha256 of the weights file that training began from
    package: str = ""  # that registers the component, with its version: "defend 0.1.0"
    command: str
    seed: int
    commit: str
    uses: tuple[str, ...] = ()  # names of `fields` that do not shape the network


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
    values = {"architecture": values.get("component"), **values}  # absent before version 0.2
    _check_names(path, values)
    try:
        values["uses"] = read_uses(values.get("uses", []))  # absent before version 0.2
        header = Header(**{**values, "trained_on": read_trained_on(values["trained_on"])})
    except BadParameter as e:
        raise _not_weights(path, str(e)) from None
    _check_types(path, header)
    return header


def read_uses(value: Any) -> tuple[str, ...]:
    """Return the names of uses from JSON or TOML. Raise BadParameter for no list of texts."""
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise BadParameter(f"uses: expected a list of texts, got {value!r}")


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


def _check_names(path: Path, values: Mapping[str, Any]) -> None:
    """Raise BadWeights for an unknown field, and for a missing one that has no default."""
    names = [field.name for field in fields(Header)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise BadWeights(
            f"{path}: expected a header with the fields {', '.join(names)}, got also"
            f" {', '.join(unknown)}; a newer version of defend wrote it: update defend"
        )
    for field in fields(Header):
        if field.default is MISSING and field.name not in values:
            raise _not_weights(path, f"the header has no field {field.name}")


def _check_types(path: Path, header: Header) -> None:
    """Raise BadWeights for a field of another type than JSON gives it."""
    types = {"fields": dict, "trained_on": TrainedOn, "seed": int, "uses": tuple}
    for field in fields(Header):
        value, expected = getattr(header, field.name), types.get(field.name, str)
        if not isinstance(value, expected):
            received = type(value).__name__
            raise _not_weights(path, f"{field.name}: expected {expected.__name__}, got {received}")


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

    values = {
        **vars(header),
        "fields": dict(header.fields),
        "trained_on": header.trained_on.to_json(),
    }
    if not header.uses:
        del values["uses"]  # versions before 0.2 read the file, too
    metadata = {KEY: json.dumps(values, sort_keys=True)}
    on_cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # safetensors' own `save_file` would make a file that only its owner can read.
    write_file(path, save(on_cpu, metadata))
