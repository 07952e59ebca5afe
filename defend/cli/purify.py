"""defend purify: purify image files, as a deployed purifier would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, log10
from pathlib import Path
from typing import TYPE_CHECKING

import click

from defend.batch_sizes import images_at_once
from defend.cli.common import UserPath, device_option, make_console, weights_dataset_option
from defend.cli.image_files import Job, plan_jobs, read_image, write_image
from defend.cli.image_memory import check_memory
from defend.errors import BadParameter, Mismatch, printable
from defend.files import ensure_writable
from defend.plugin_checks import describe_crash

if TYPE_CHECKING:
    from torch import Tensor

    from defend.purifier import Purifier

BATCH = 64  # images held in memory together, fewer large ones


@click.command("purify")
@click.argument("spec")
@click.argument("inputs", nargs=-1, required=True, type=UserPath(), metavar="IMAGE_OR_FOLDER...")
@click.option(
    "--out",
    required=True,
    type=UserPath(),
    metavar="DIR",
    help="The folder for PNG files of the same names; folders keep their structure.",
)
@weights_dataset_option
@device_option
def purify(
    spec: str, inputs: tuple[Path, ...], out: Path, dataset: str | None, device: str
) -> None:
    """Purify images with the defense SPEC, and print how much each one changed.

    Transparency is dropped. The inputs are never overwritten. An image that cannot be purified is
    listed at the end, and the others go on; the exit code is then 2.
    """
    failures: list[str] = []
    jobs = plan_jobs(inputs, out, failures)
    planned = len(jobs) + len(failures)
    from defend.loading import load, pick_device

    purifier: Purifier = load(spec, "defense", dataset, pick_device(device))
    ensure_writable(out)
    for result in purify_files(purifier, jobs, failures):
        change = "unchanged" if result.psnr == inf else f"{result.psnr:.2f} dB PSNR"
        line = f"{result.job.source} -> {result.job.target}  {change}"
        make_console().print(printable(line))
    if failures:
        raise BadParameter(f"left out {len(failures)} of {planned}: {'; '.join(failures)}")


@dataclass(frozen=True)
class LoadedImage:
    """A job with its image, uint8 (1 or 3, h, w)."""

    job: Job
    pixels: Tensor


@dataclass(frozen=True)
class Result:
    """A purified image file; `psnr` compares it with its source, in dB."""

    job: Job
    psnr: float


def purify_files(purifier: Purifier, jobs: list[Job], failures: list[str]) -> Iterator[Result]:
    """Purify the images of all jobs, neighbours of one shape as one batch, and write them.

    For each file that is no image, that the purifier does not take, or that cannot be written, a
    line is added to `failures`, and the other files go on.
    """
    for batch in _group_by_shape(_load(jobs, purifier, failures)):
        try:
            purified = _purify_batch(purifier, batch)
        except Mismatch as e:
            failures.extend(f"{image.job.source}: {e}" for image in batch)
            continue
        except Exception as e:  # a plugin may raise anything, and a device may be full
            failures.extend(f"{image.job.source}: {describe_crash(e)}" for image in batch)
            continue
        yield from _write_batch(batch, purified, failures)


def _load(jobs: list[Job], purifier: Purifier, failures: list[str]) -> Iterator[LoadedImage]:
    """Yield the images that can be read; add a line to `failures` for each of the others."""
    for job in jobs:
        try:
            check_memory(job.source, purifier)
            pixels = read_image(job.source)
        except BadParameter as e:
            failures.append(str(e))
            continue
        yield LoadedImage(job, pixels)


def _group_by_shape(images: Iterator[LoadedImage]) -> Iterator[list[LoadedImage]]:
    """Group neighbours of one shape, at most BATCH of them, and fewer large ones.

    So memory does not grow with the number of files.
    """
    batch: list[LoadedImage] = []
    for image in images:
        shape = image.pixels.shape
        size = images_at_once(BATCH, (1, *shape), "cpu")
        if batch and shape != batch[0].pixels.shape:
            yield batch
            batch = []
        batch.append(image)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def _purify_batch(purifier: Purifier, batch: list[LoadedImage]) -> Tensor:
    """Return the purified images of a batch of one shape, uint8 (b, 1 or 3, h, w).

    Raises Mismatch if the purifier does not take images of this shape.
    """
    import torch

    x = torch.stack([image.pixels for image in batch])
    with torch.no_grad():
        # ART's preprocessors, and so every purifier, return the images with the labels (none here).
        purified, _ = purifier.forward(x.float() / 255)
    return purified.mul(255).round().to(torch.uint8)


def _write_batch(
    batch: list[LoadedImage], purified: Tensor, failures: list[str]
) -> Iterator[Result]:
    """Write the purified images (b, 1 or 3, h, w), and yield what became of each one written."""
    for image, pixels in zip(batch, purified, strict=True):
        target = image.job.target
        try:
            write_image(target, pixels)
        except OSError as e:
            failures.append(f"{image.job.source}: {target} cannot be written: {e.strerror or e}")
            continue
        yield Result(image.job, _measure_psnr(image.pixels, pixels))


def _measure_psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two uint8 images in dB, inf if they are equal."""
    mse = (a.double() - b.double()).square().mean().item() / 255**2
    return -10 * log10(mse) if mse else inf
