"""Headers of unit files, read without their tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from defend.unit_files import unit_path


def read_header(run_dir: Path, key: str) -> Mapping[str, Any] | None:
    """Return the header of a unit without its tensors; None if it is missing or damaged."""
    try:
        with safe_open(unit_path(Path(run_dir), key), "pt") as f:
            text = (f.metadata() or {}).get("header", "")
        header = json.loads(text)
    except (OSError, SafetensorError, ValueError):
        return None
    return header if isinstance(header, dict) else None
