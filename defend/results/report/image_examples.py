"""Strips of images for the report: clean, adversarial, purified, ten times the difference; one strip for each cell with samples."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defend.results.diagnostics import name_of
from defend.results.outcomes import Record, find_unit

BUDGET = 3_500_000  # characters of base64 in one report: the file stays below 5 MB
MOST = 8  # images in a strip
_WIDE = 384  # pixels of a strip before it shows fewer images
_SHOWN = 56  # pixels on the page for a small image, nearest neighbour
_GAP = 1  # pixels between images, transparent
ROWS = ("clean", "adversarial", "purified", "difference x10")


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One PNG with a row of images for each of ROWS, and where it belongs."""

    defense: str
    attack: str
    eps_text: str
    name: str  # of the cell: defense, attack, level
    record: Record
    png: str  # base64
    width: int  # on the page, in pixels
    pixelated: bool


def strips(
    records: Sequence[Record], run_dirs: Sequence[Path], budget: int = BUDGET
) -> tuple[list[Strip], int]:
    """In the order of the records, and how many were left out. Each series shows its largest eps before any shows a second."""
    made: dict[int, Strip] = {}
    spent = left_out = 0
    for i in _by_turns(records):
        strip = _strip(records[i], run_dirs) if left_out == 0 else None
        if strip is not None and spent + len(strip.png) <= budget:
            made[i] = strip
            spent += len(strip.png)
        elif strip is not None or left_out:
            left_out += 1
    return [made[i] for i in sorted(made)], left_out


def _by_turns(records: Sequence[Record]) -> list[int]:
    """Cells with something to see: the largest eps of every series first, then the second largest."""
    series: dict[str, list[int]] = {}
    for i, r in enumerate(records):
        if r["error"] is None and r["eps"] > 0 and r["units"]:
            series.setdefault(
                repr(
                    [
                        r[k]
                        for k in (
                            "dataset",
                            "classifier",
                            "defense",
                            "attack",
                            "knowledge",
                            "gradient",
                            "surrogate",
                            "seed",
                        )
                    ]
                ),
                [],
            ).append(i)
    turns = [
        (turn, i)
        for same in series.values()
        for turn, i in enumerate(sorted(same, key=lambda i: -float(records[i]["eps"])))
    ]
    return [i for _, i in sorted(turns)]


def _strip(r: Record, run_dirs: Sequence[Path]) -> Strip | None:
    unit = find_unit(r["units"][0], run_dirs)
    if unit is None or not {"sample_x", "sample_adv", "sample_purified"} <= unit.tensors.keys():
        return None
    grid, side = _grid(unit.tensors)
    scale = max(1, round(_SHOWN / side))
    return Strip(
        defense=r["defense"],
        attack=r["attack"],
        eps_text=r["eps_text"],
        name=name_of(r).removeprefix(f"{r['defense']}, {r['attack']}, "),
        record=r,
        png=_png(grid),
        width=min(grid.shape[1] * scale, 2 * _WIDE),
        pixelated=scale > 1,
    )


def _grid(tensors: Mapping[str, Any]) -> tuple[NDArray[np.uint8], int]:
    """(4 rows of images, with alpha: (H, W, 2 or 4)), and the width of one image."""
    x, adv, purified = (
        _unit_range(tensors[f"sample_{name}"].numpy()) for name in ("x", "adv", "purified")
    )
    side = x.shape[3]
    m = max(1, min(len(x), MOST, _WIDE // side))
    rows = [x, adv, purified, 0.5 + 10 * (adv - x)]  # no change is mid-grey
    pixels = np.stack(
        [np.round(255 * np.clip(row[:m], 0, 1)).astype(np.uint8) for row in rows]
    )  # (4, m, c, h, w)
    opaque = np.full_like(pixels[:, :, :1], 255)
    spaced = np.pad(
        np.concatenate([pixels, opaque], 2), [(0, 0), (0, 0), (0, 0), (0, _GAP), (0, _GAP)]
    )
    whole = spaced.transpose(0, 3, 1, 4, 2).reshape(4 * spaced.shape[3], m * spaced.shape[4], -1)
    return np.ascontiguousarray(whole), side


def _unit_range(images: NDArray[Any]) -> NDArray[np.float32]:
    """Grey or colour in [0, 1]; of other numbers of channels the first."""
    values = images.astype(np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)
    return values if values.shape[1] in (1, 3) else values[:, :1]


def _png(grid: NDArray[np.uint8]) -> str:
    out = BytesIO()
    Image.fromarray(grid, "LA" if grid.shape[2] == 2 else "RGBA").save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()
