"""defend purify: image files through a purifier, as deployed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from math import inf, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from defend.cli.common import console
from defend.errors import BadParameter, Mismatch
from defend.files import writable

if TYPE_CHECKING:
    from torch import Tensor

    from defend.purifier import Purifier

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
AT_ONCE = 64  # images held in memory together


@click.command("purify")
@click.argument("spec")
@click.argument(
    "inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE_OR_FOLDER..."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="PNG files of the same names; folders keep their structure.",
)
@click.option("--dataset", metavar="NAME", help="What weights=auto looks for.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:1")
def purify(
    spec: str, inputs: tuple[Path, ...], out: Path, dataset: str | None, device: str
) -> None:
    """Purify images with SPEC and say how much each one changed. Transparency is dropped; the inputs are never overwritten."""
    jobs = plan(inputs, out)
    from defend.load import load, pick_device

    purifier: Purifier = load(spec, "defense", dataset, pick_device(device))
    writable(out)
    unread: list[str] = []
    for source, target, psnr in run(purifier, jobs, unread):
        console().print(
            f"{source} -> {target}  {f'{psnr:.2f} dB PSNR' if psnr < inf else 'unchanged'}"
        )
    if unread:
        raise BadParameter(f"left out {len(unread)} of {len(jobs)}: " + "; ".join(unread))


def plan(inputs: tuple[Path, ...], out: Path) -> list[tuple[Path, Path]]:
    """(source, target) for each image, no target an input or the target of another. Raises BadParameter."""
    jobs = [
        (source, out / relative.with_suffix(".png"))
        for path in inputs
        for source, relative in _images(path)
    ]
    sources = {source.resolve() for source, _ in jobs}
    taken: dict[Path, Path] = {}
    for source, target in jobs:
        if target.resolve() in sources:
            raise BadParameter(
                f"--out {out}: {target} would overwrite an input. Give another folder."
            )
        if target in taken:
            raise BadParameter(
                f"{source} and {taken[target]} would both become {target}. Purify them into folders of their own."
            )
        taken[target] = source
    return jobs


def _images(path: Path) -> list[tuple[Path, Path]]:
    """(file, its name under --out)."""
    if path.is_file():
        return [(path, Path(path.name))]
    if not path.is_dir():
        raise BadParameter(f"{path}: no such image or folder")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise BadParameter(
            f"{path}: no images in this folder (looked for {', '.join(sorted(SUFFIXES))})"
        )
    return [(p, p.relative_to(path)) for p in found]


def run(
    purifier: Purifier, jobs: list[tuple[Path, Path]], unread: list[str]
) -> Iterator[tuple[Path, Path, float]]:
    """Neighbours of one shape go through the purifier together. Yields source, target and the PSNR between them in dB.

    unread: gets a line for each file that is no image, or none for this purifier; the others go on.
    """
    import torch

    images = _readable(jobs, unread)
    for _, same in groupby(images, lambda job: job[2].shape):
        while part := list(islice(same, AT_ONCE)):
            x = torch.stack([image for _, _, image in part])
            try:
                with torch.no_grad():
                    y = purifier.forward(x.float() / 255)[0].mul(255).round().to(torch.uint8)
            except Mismatch as e:
                unread.extend(f"{source}: {e}" for source, _, _ in part)
                continue
            for (source, target, before), after in zip(part, y, strict=True):
                _write(target, after)
                yield source, target, _psnr(before, after)


def _readable(
    jobs: list[tuple[Path, Path]], unread: list[str]
) -> Iterator[tuple[Path, Path, Tensor]]:
    for source, target in jobs:
        try:
            yield source, target, _read(source)
        except BadParameter as e:
            unread.append(str(e))


def _read(path: Path) -> Tensor:
    """uint8 (1 or 3, h, w). Raises BadParameter."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image: Any = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                raise BadParameter(
                    f"{path}: more than 8 bits per channel ({image.mode}); convert it to 8 bits"
                )
            array = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (OSError, UnidentifiedImageError) as e:
        raise BadParameter(f"{path}: no image that can be read: {e}") from None
    return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def _write(path: Path, image: Tensor) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(path)


def _psnr(a: Tensor, b: Tensor) -> float:
    mse = (a.double() - b.double()).square().mean().item() / 255**2
    return -10 * log10(mse) if mse else inf
