"""Sheets of images, for the eye: one PNG with a grid of images."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image
from torch import Tensor


def write_grid(x: Tensor, columns: int, path: Path) -> None:
    """Write images x (n, 1 or 3, h, w) in [0, 1] as one PNG, row after row; gaps are white."""
    n, c, h, w = x.shape
    rows = math.ceil(n / columns)
    cells = x.detach().new_ones(rows * columns, c, h, w)
    cells[:n] = x.detach()
    cells = cells.view(rows, columns, c, h, w).permute(0, 3, 1, 4, 2)
    pixels = (255 * cells).round().byte().cpu().reshape(rows * h, columns * w, c).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze(-1) if c == 1 else pixels).save(path)
