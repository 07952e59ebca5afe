"""Unit files: the outcomes of one cell on one range of images, named by their key and checksummed.

DIR/units/ab/<key>.safetensors holds tensors, and in its metadata one JSON header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from defend.files import write_file
from defend.hashing import cache_key, canonical_json, tensor_sha256

# Names of tensors (n, draws, ...) that hold what a task says beside the score begin with these.
TARGET_REACHED = "note_target_reached"  # (n,) bool: the first draw is classified as the target
DETAIL, CLEAN_DETAIL = "detail_", "clean_detail_"


@dataclass(frozen=True)
class Unit:
    """A unit file, read and verified."""

    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any]


def unit_path(run_dir: Path, key: str) -> Path:
    """Return where the unit of this key lies in a run folder."""
    return run_dir / "units" / key[:2] / f"{key}.safetensors"


def write_unit(
    run_dir: Path, key: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write a unit file; it is complete or absent. Raises OSError."""
    path = unit_path(run_dir, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = canonical_json(header)
    body = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {
        "header": text,
        "header_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "tensors_sha256": _hash_tensors(body),
    }
    write_file(path, save(body, metadata))


def read_unit(run_dir: Path, key: str) -> Unit | None:
    """Return the unit; None if the file is missing or damaged, so that it is computed again."""
    try:
        with safe_open(unit_path(Path(run_dir), key), "pt") as f:
            metadata = f.metadata() or {}
            names = f.keys()  # safe_open is no mapping
            tensors = {name: f.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return None
    text = metadata.get("header", "")
    if metadata.get("header_sha256") != hashlib.sha256(text.encode()).hexdigest():
        return None
    if metadata.get("tensors_sha256") != _hash_tensors(tensors):
        return None
    header = json.loads(text)
    return Unit(tensors, header) if cache_key(header["key_inputs"]) == key else None


def find_unit(key: str, run_dirs: Sequence[Path]) -> Unit | None:
    """Return the unit from the first folder that holds it undamaged; None if no folder does."""
    for run_dir in run_dirs:
        unit = read_unit(run_dir, key)
        if unit is not None:
            return unit
    return None


def _hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    names = "".join(name + tensor_sha256(tensors[name]) for name in sorted(tensors))
    return hashlib.sha256(names.encode()).hexdigest()
