"""Image files for `defend purify`: which file becomes which, and how they are read and written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defend.errors import BadParameter

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_GREY_MODES = ("1", "L", "LA")  # Pillow's modes that are read as one channel


@dataclass(frozen=True)
class Job:
    """An image file, and the file that its purified image is written to."""

    source: Path
    target: Path


def plan_jobs(inputs: tuple[Path, ...], out: Path) -> list[Job]:
    """Return a job for each image file and for each image below a folder.

    Raises BadParameter if a target is one of the sources, or the target of two of them.
    """
    jobs: list[Job] = []
    for path in inputs:
        for source, relative in _find_images(path):
            jobs.append(Job(source, out / relative.with_suffix(".png")))
    _check_targets(jobs, out)
    return jobs


def _check_targets(jobs: list[Job], out: Path) -> None:
    sources = {job.source.resolve() for job in jobs}
    source_of: dict[Path, Path] = {}
    for job in jobs:
        if job.target.resolve() in sources:
            raise BadParameter(
                f"--out {out}: {job.target} would overwrite an input; give another folder"
            )
        if job.target in source_of:
            raise BadParameter(
                f"{job.source} and {source_of[job.target]} would both become {job.target}; purify"
                " them into two folders"
            )
        source_of[job.target] = job.source


def _find_images(path: Path) -> list[tuple[Path, Path]]:
    """Return (file, its path below --out) of a file, or of each image below a folder."""
    if path.is_file():
        return [(path, Path(path.name))]
    if not path.is_dir():
        raise BadParameter(f"{path}: no such image or folder; give paths that exist")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise BadParameter(
            f"{path}: no images in this folder; expected files that end in"
            f" {', '.join(sorted(SUFFIXES))}"
        )
    return [(file, file.relative_to(path)) for file in files]


def read_image(path: Path) -> Tensor:
    """Return an image as uint8 (1 or 3, h, w). Raises BadParameter if it cannot be read."""
    import numpy as np
    import torch

    from defend.image_files import open_upright

    image = open_upright(path)
    array = np.asarray(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def write_image(path: Path, pixels: Tensor) -> None:
    """Write an image, uint8 (1 or 3, h, w), and make its folder."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(path)
