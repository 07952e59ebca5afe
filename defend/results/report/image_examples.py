"""Examples of images for the report: clean, adversarial, purified, ten times the difference.

There is one picture for each cell that stored samples.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from defend.records import Record
from defend.results.diagnostics import describe_level
from defend.unit_files import find_unit

BUDGET = 3_500_000  # characters of base64 in one report: the file stays below 5 MB
MAX_IMAGES = 8  # in a picture
_MAX_WIDTH = 384  # pixels of a picture before it shows fewer images
_SMALL_IMAGE = 56  # pixels on the page for a small image, enlarged by nearest neighbours
_GAP = 1  # pixels between images, transparent
ROWS = ("clean", "adversarial", "purified", "difference x10")
_SAMPLES = ("sample_x", "sample_adv", "sample_purified")


@dataclass(frozen=True, kw_only=True)
class ImageExamples:
    """One PNG with a row of images for each of ROWS, and the cell that it is of."""

    defense: str
    attack: str
    eps_text: str
    level: str
    record: Record
    png: str  # base64
    width: int  # on the page, in pixels
    pixelated: bool


def make_image_examples(
    records: Sequence[Record], run_dirs: Sequence[Path], budget: int = BUDGET
) -> tuple[list[ImageExamples], int]:
    """Return the pictures in the order of the records, and how many were left out.

    Each series shows its largest eps before any shows a second one.
    """
    pictures: dict[int, ImageExamples] = {}
    spent = left_out = 0
    for i in _order_of_choice(records):
        picture = _make_picture(records[i], run_dirs)
        if picture is None:
            continue
        if left_out or spent + len(picture.png) > budget:
            left_out += 1
            continue
        pictures[i] = picture
        spent += len(picture.png)
    return [pictures[i] for i in sorted(pictures)], left_out


def _order_of_choice(records: Sequence[Record]) -> list[int]:
    """Return the largest eps of every series first, then the second largest.

    Cells without a change of the image are left out.
    """
    series: dict[tuple[object, ...], list[int]] = {}
    for i, record in enumerate(records):
        if not record.failed and record.eps > 0 and record.units:
            series.setdefault(_series(record), []).append(i)
    ranked = []
    for indices in series.values():
        by_eps = sorted(indices, key=lambda i: -records[i].eps)
        ranked += list(enumerate(by_eps))
    return [i for _, i in sorted(ranked)]


def _series(record: Record) -> tuple[object, ...]:
    return (
        record.dataset,
        record.classifier_label,
        record.defense_label,
        record.attack,
        record.knowledge,
        record.gradient,
        record.surrogate,
        record.seed,
    )


def _make_picture(record: Record, run_dirs: Sequence[Path]) -> ImageExamples | None:
    unit = find_unit(record.units[0], run_dirs)
    if unit is None or not set(_SAMPLES) <= unit.tensors.keys():
        return None
    pixels, side = _draw_grid(unit.tensors)
    scale = max(1, round(_SMALL_IMAGE / side))
    return ImageExamples(
        defense=record.defense_label,
        attack=record.attack,
        eps_text=record.eps_text,
        level=describe_level(record),
        record=record,
        png=_encode_png(pixels),
        width=min(pixels.shape[1] * scale, 2 * _MAX_WIDTH),
        pixelated=scale > 1,
    )


def _draw_grid(tensors: Mapping[str, Tensor]) -> tuple[NDArray[np.uint8], int]:
    """Return four rows of images with alpha, (H, W, 2 or 4), and the width of one image."""
    clean, adversarial, purified = (_to_unit_range(_crop(tensors[name])) for name in _SAMPLES)
    side = clean.shape[3]
    count = max(1, min(len(clean), MAX_IMAGES, _MAX_WIDTH // side))
    difference = 0.5 + 10 * (adversarial - clean)  # no change is mid-grey
    rows = [clean, adversarial, purified, difference]
    pixels = np.stack([_to_bytes(row[:count]) for row in rows])  # (4, count, c, h, w)
    opaque = np.full_like(pixels[:, :, :1], 255)
    with_alpha = np.concatenate([pixels, opaque], 2)
    spaced = np.pad(with_alpha, [(0, 0), (0, 0), (0, 0), (0, _GAP), (0, _GAP)])
    _, _, channels, height, width = spaced.shape
    grid = spaced.transpose(0, 3, 1, 4, 2).reshape(4 * height, count * width, channels)
    return np.ascontiguousarray(grid), side


def _crop(images: Tensor) -> Tensor:
    """Return the central part of images that are larger than a picture on the page."""
    top, left = (max(0, side - _MAX_WIDTH) // 2 for side in images.shape[-2:])
    return images[..., top : top + _MAX_WIDTH, left : left + _MAX_WIDTH]


def _to_bytes(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)


def _to_unit_range(images: Tensor) -> NDArray[np.float32]:
    """Return grey or colour in [0, 1]; of another number of channels the first."""
    array = images.numpy()
    scale = np.float32(255 if array.dtype == np.uint8 else 1)
    values = array.astype(np.float32) / scale
    return values if values.shape[1] in (1, 3) else values[:, :1]


def _encode_png(pixels: NDArray[np.uint8]) -> str:
    out = BytesIO()
    mode = "LA" if pixels.shape[2] == 2 else "RGBA"
    Image.fromarray(pixels, mode).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()
