"""Kodak's 24 photographs, by which image codecs are compared: 768x512 and 512x768, RGB."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from defend.dataset import Dataset, DatasetCard, Split, data_root
from defend.datasets.pixels import crop_square, read_image
from defend.errors import MissingData

COUNT, LONG, SHORT = 24, 768, 512


class Kodak(Dataset):
    """Provide the photographs kodim01.png to kodim24.png, all of them as the test split.

    They have no labels. The landscapes come first and then the portraits, each in the order of
    their numbers, so that images of one size are neighbours.
    """

    card = DatasetCard(
        source="https://r0k.us/graphics/kodak/",
        licence="released by the Eastman Kodak Company for unrestricted use",
        claim={"Linf": 16 / 255},  # the bound of arXiv:2112.08691
    )
    splits = ("test",)
    size: int = LONG  # pixels: 768 for whole images; 512 or less for the central square, unscaled
    channels: int = 3  # 1: grey

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        is_square = 1 <= self.size <= SHORT
        self.require(is_square or self.size == LONG, "size", f"1 to {SHORT}, or {LONG}")
        self.require(self.channels in (1, 3), "channels", "1 or 3")

    @property
    def names(self) -> tuple[str, ...]:
        """Return no names, as the photographs have no classes."""
        return ()

    @property
    def uniform(self) -> bool:
        """Return True for central squares."""
        return self.size != LONG

    @property
    def checksum(self) -> str:
        """Return the checksum of the landscapes, or of the squares of 64 pixels."""
        return {LONG: CHECKSUM, 64: CHECKSUM_OF_SQUARES}.get(self.size, "")

    def size_changes(self, split: Split) -> tuple[int, ...]:
        """Return the first portrait among the whole images."""
        if self.uniform:
            return ()
        portraits = [i for i, (height, width) in enumerate(self._shapes) if height > width]
        return tuple(portraits[:1])

    def count(self, split: Split) -> int:
        """Return 24. Raise MissingData for another split than test, or if a file is absent."""
        if split != "test":
            raise MissingData(
                f"kodak: its {COUNT} images are the split test, there is no {split}; train and"
                " choose on other photographs, such as image-folder:path=FOLDER"
            )
        return len(self._files)

    def _rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        arrays = [self._read(file) for file in self._files[start:stop]]
        x = np.stack(arrays) if arrays else np.empty((0, self.channels, self.size, self.size))
        images = torch.from_numpy(x.astype(np.float32)).div_(255)
        return images, torch.zeros(len(images), dtype=torch.int64)

    def _read(self, file: Path) -> np.ndarray:
        """Return uint8 (c, h, w)."""
        image = read_image(file, self.channels)
        if self.uniform:
            image = crop_square(image)
            margin = (image.width - self.size) // 2
            image = image.crop((margin, margin, margin + self.size, margin + self.size))
        pixels = np.asarray(image).reshape(image.height, image.width, self.channels)
        return pixels.transpose(2, 0, 1)

    @cached_property
    def _files(self) -> list[Path]:
        """Return the files, landscapes first. Raise MissingData."""
        portraits = self._portraits
        return sorted(portraits, key=lambda file: (portraits[file], file.name))

    @cached_property
    def _portraits(self) -> dict[Path, bool]:
        """Return whether each file is a portrait, read once. Raise MissingData."""
        folder = data_root(self.root) / "kodak"
        files = [folder / f"kodim{number:02}.png" for number in range(1, COUNT + 1)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise MissingData(
                f"kodak: there is no {missing[0]}; put kodim01.png to kodim{COUNT}.png of"
                f" https://r0k.us/graphics/kodak/ into {folder}, or give the folder that contains"
                " kodak by --data-root or DEFEND_DATA"
            )
        return {file: _is_portrait(file) for file in files}

    @cached_property
    def _shapes(self) -> list[tuple[int, int]]:
        """Return height and width of each image."""
        portraits = self._portraits
        return [(LONG, SHORT) if portraits[file] else (SHORT, LONG) for file in self._files]


# Of the landscapes, and of all squares of 64 pixels: `defend.testing.dataset_checks.checksum_of`.
CHECKSUM, CHECKSUM_OF_SQUARES = "276e7f423e4aabd1", "745d488d720f6a27"


def _is_portrait(file: Path) -> bool:
    """Return True for 512x768. Raises MissingData for an image of another size than Kodak's."""
    size = read_image(file, 3).size
    if size not in ((LONG, SHORT), (SHORT, LONG)):
        raise MissingData(
            f"{file}: expected a photograph of {LONG}x{SHORT} or {SHORT}x{LONG}, got"
            f" {size[0]}x{size[1]}; copy Kodak's file anew"
        )
    return bool(size == (SHORT, LONG))
