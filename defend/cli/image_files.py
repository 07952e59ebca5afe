"""Image files for `defend purify`: which file becomes which, and how they are read and written."""

from __future__ import annotations

from collections import Counter
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


def plan_jobs(inputs: tuple[Path, ...], out: Path, failures: list[str]) -> list[Job]:
    """Return a job for each image file and for each image below a folder.

    Two images that differ in their suffix alone, as ok.gif and ok.bmp, keep it: ok.gif.png. An
    image that would still become the file of another one is left out, with a line in `failures`.
    Raises BadParameter if a target is one of the sources.
    """
    sources = dict.fromkeys(image for path in inputs for image in _find_images(path))
    targets = Counter(relative.with_suffix(".png") for _, relative in sources)
    source_of: dict[Path, Path] = {}
    jobs: list[Job] = []
    for source, relative in sources:
        target = out / _target_name(relative, is_shared=targets[relative.with_suffix(".png")] > 1)
        if target in source_of:
            failures.append(
                f"{source}: would become {target}, as {source_of[target]} does; purify it into"
                " another folder"
            )
            continue
        source_of[target] = source
        jobs.append(Job(source, target))
    _check_no_input_is_overwritten(jobs, out)
    return jobs


def _target_name(relative: Path, is_shared: bool) -> Path:
    """Return the name of the purified file; is_shared: other files would have it too."""
    is_png = relative.suffix == ".png"
    return (
        relative.with_name(f"{relative.name}.png")
        if is_shared and not is_png
        else (relative.with_suffix(".png"))
    )


def _check_no_input_is_overwritten(jobs: list[Job], out: Path) -> None:
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        if job.target.resolve() in sources:
            raise BadParameter(
                f"--out {out}: {job.target} would overwrite an input; give another folder"
            )


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
