"""Hashes of data: canonical JSON, cache keys and tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def canonical_json(data: Any) -> str:
    """Return the one JSON text for this data: sorted keys, no spaces. NaN raises ValueError."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def cache_key(inputs: Mapping[str, Any]) -> str:
    """Return the sha256 of the canonical JSON of everything that decides a result."""
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()


def tensor_sha256(*tensors: Tensor) -> str:
    """Return the sha256 of the tensors' dtypes, shapes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
