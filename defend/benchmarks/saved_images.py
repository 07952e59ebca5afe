"""Images of a run that are kept on request: exact values, and pictures to look at.

DIR/images/CELL/0000-0063.safetensors holds float32 tensors (b, c, h, w) in [0, 1], `clean`,
`adversarial` and `purified` (its first draw), and `index`, the places of the images in the split.
Beside it, 0003-adversarial.png is image 3 rounded to 256 levels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from defend.benchmarks.jobs import UnitTask
from defend.files import write_file
from defend.hashing import cache_key

NAME_LENGTH = 100  # characters of a folder's name before its hash
_PICTURE_MODES = {1: "L", 3: "RGB"}  # channels of images that PNG can show -> how


@dataclass(frozen=True)
class SavedImages:
    """The images of the first `count` places of the split, of each cell of a run."""

    run_dir: Path
    count: int

    def is_complete(self, task: UnitTask, start: int, stop: int) -> bool:
        """Return True if nothing of this unit has to be saved, or if all of it is there.

        Images of other data, as of a folder that has changed, are not.
        """
        if start >= self.count:
            return True
        try:
            with safe_open(self._file(task, start, stop), "pt") as f:
                metadata = f.metadata() or {}
        except (OSError, SafetensorError):
            return False
        return bool(metadata.get("data") == task.key_inputs["data"])

    def save(self, task: UnitTask, start: int, images: Mapping[str, Tensor]) -> None:
        """Write the images of a unit that begins at place `start`, the tensors last.

        images: name -> (b, c, h, w) in [0, 1], as many as the unit has. Raises OSError.
        """
        stop = start + len(next(iter(images.values())))
        if self.is_complete(task, start, stop):
            return
        images_wanted = min(stop, self.count) - start
        tensors = {
            name: batch[:images_wanted].float().cpu().contiguous() for name, batch in images.items()
        }
        file = self._file(task, start, stop)
        file.parent.mkdir(parents=True, exist_ok=True)
        for name, batch in tensors.items():
            for place, image in enumerate(batch, start):
                _write_picture(file.parent / f"{place:04d}-{name}.png", image)
        tensors["index"] = torch.arange(start, start + images_wanted)
        write_file(file, save(tensors, {"data": task.key_inputs["data"]}))

    def _file(self, task: UnitTask, start: int, stop: int) -> Path:
        last = min(stop, self.count) - 1
        folder = self.run_dir / "images" / name_folder(task)
        return folder / f"{start:04d}-{last:04d}.safetensors"


def name_folder(task: UnitTask) -> str:
    """Return the name of a cell's folder: what a reader looks for, and a hash of everything else.

    "jpeg-quality=60_pgd_adaptive-declared_eps-8-255_1a2b3c4d".
    """
    cell = task.cell
    gradient = cell.gradient if cell.knowledge == "adaptive" else None
    level = "-".join(filter(None, (cell.knowledge, gradient, cell.surrogate)))
    text = f"{cell.defense}_{cell.bare_attack}_{level}_eps-{cell.eps.text}"
    inputs = {k: v for k, v in task.key_inputs.items() if k not in ("range", "data")}
    inputs |= {"dataset": cell.dataset, "split": cell.split}  # ranges differ in the hash of data
    readable = re.sub(r"[^A-Za-z0-9.=_+]+", "-", text).lstrip(".-")[:NAME_LENGTH]
    return f"{readable}_{cache_key(inputs)[:8]}"


def _write_picture(path: Path, image: Tensor) -> None:
    """Write a PNG of an image (c, h, w) in [0, 1]; none of other than 1 or 3 channels."""
    mode = _PICTURE_MODES.get(len(image))
    if mode is None:
        return
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = levels[0] if mode == "L" else levels.permute(1, 2, 0)
    Image.fromarray(pixels.numpy(), mode).save(path)
