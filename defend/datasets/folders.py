"""Folders of images in torchvision's ImageFolder layout, decoded one by one when rows are read."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from defend.dataset import SPLITS, Dataset, Split, data_root
from defend.datasets.hash_order import hash_position
from defend.datasets.pixels import read_pixels
from defend.errors import MissingData
from defend.registry import REGISTRY

# The range of hash positions of each split, if one folder holds all images.
RANGES: dict[Split, tuple[float, float]] = {"test": (0, 0.2), "val": (0.2, 0.3), "train": (0.3, 1)}
VAL = 0.1  # share of train that is the val split, if only train and test have their own folders

LabelledFile = tuple[Path, int]


class FolderDataset(Dataset):
    """Provide the images of a folder, in the order of the hash of their relative paths. Abstract.

    The layout is FOLDER/{train,val,test}/CLASS/*, FOLDER/{train,test}/CLASS/* or FOLDER/CLASS/*.
    Without the folders CLASS, the images have no labels. A subclass adds a `card` and `folder`.
    """

    # Height and width in pixels: the central square, averaged down by area or enlarged bicubically.
    size: int = 224
    channels: int = 3  # 1: grey

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        self.require(self.size >= 1, "size", ">= 1")
        self.require(self.channels in (1, 3), "channels", "1 or 3")

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Return the folder of the images. Raises MissingData if it does not exist."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the sorted classes of all splits, none of images without labels.

        Raises MissingData for one class, or for a folder without images.
        """
        tops = [self.folder]
        if self._has_split_folders:
            tops = [self.folder / split for split in SPLITS if (self.folder / split).is_dir()]
        names: set[str] = set()
        for top in tops:
            names.update(list_classes(top))
        is_unlabelled = not names and any(list_plain_images(top) for top in tops)
        if len(names) < 2 and not is_unlabelled:
            raise MissingData(
                f"{self.folder}: expected a folder of images for each of two or more classes, or"
                f" train, val and test with such folders in each, got {len(names)} classes; images"
                " without labels lie in no folder of a class"
            )
        return tuple(sorted(names))

    @cached_property
    def _has_split_folders(self) -> bool:
        """Return True if each split has a folder of its own.

        A class may be called "train", but a folder "train" beside a folder "test" is a split.
        """
        names = set(list_classes(self.folder))
        return bool(names) and (names <= set(SPLITS) or {"train", "test"} <= names)

    def count(self, split: Split) -> int:
        """Return the number of images. Raises MissingData if there is no folder for the split."""
        return len(self._files(split))

    def _rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        files = self._files(split)[start:stop]
        x = np.empty((len(files), self.channels, self.size, self.size), np.uint8)
        for i, (file, _) in enumerate(files):
            x[i] = read_pixels(file, self.size, self.channels)
        y = torch.tensor([label for _, label in files], dtype=torch.int64)
        return torch.from_numpy(x).float().div_(255), y

    def _files(self, split: Split) -> list[LabelledFile]:
        """Return the paths with their labels; the folder is read once."""
        if split not in self._file_lists:
            self._file_lists[split] = self._list_files(split)
        return self._file_lists[split]

    @cached_property
    def _file_lists(self) -> dict[Split, list[LabelledFile]]:
        """Return the lists that `_files` has read already."""
        return {}

    def _list_files(self, split: Split) -> list[LabelledFile]:
        if not self._has_split_folders:
            return list_images(self.folder, self.names, *RANGES[split])
        own_folder = self.folder / split
        val_is_cut = not (self.folder / "val").is_dir()
        if split == "train" and val_is_cut and own_folder.is_dir():
            return list_images(own_folder, self.names, VAL, 1.0)
        if own_folder.is_dir():
            return list_images(own_folder, self.names, 0.0, 1.0)
        if split == "val":
            return list_images(self.folder / "train", self.names, 0.0, VAL)
        raise MissingData(
            f"{type(self).__name__}: there is no {own_folder}; expected {split}/CLASS/*.png there"
        )


class PathFolder(FolderDataset):
    """Provide the images of the folder that the field `path` names. Abstract."""

    own_images = True
    expected: ClassVar[str] = "FOLDER/CLASS/*.png in it"  # for the error text
    path: str  # a folder, or a folder inside the data root

    @property
    def folder(self) -> Path:
        """Return the folder of the images. Raises MissingData if it does not exist."""
        path = Path(self.path).expanduser()
        # Joined to an absolute path, the data root disappears.
        candidates = [path, data_root(self.root) / path]
        for candidate in candidates:
            if candidate.is_dir():
                return candidate
        name = REGISTRY.component("dataset", type(self))
        places = " or ".join(dict.fromkeys(str(c.absolute()) for c in candidates))
        raise MissingData(
            f"{name}:path={self.path}: there is no folder {places}; write"
            f" {name}:path=FOLDER with {self.expected}"
        )


def list_classes(folder: Path) -> list[str]:
    """Return the names of the folders in a folder; the list may be empty."""
    try:
        names: list[str] = find_classes(folder)[0]
    except OSError:  # torchvision raises it for a folder without folders too
        return []
    return [name for name in names if not name.startswith(".")]


def list_plain_images(top: Path) -> list[str]:
    """Return the image files that lie in a folder itself."""
    files = top.iterdir() if top.is_dir() else ()
    return sorted(str(f) for f in files if f.suffix.lower() in IMG_EXTENSIONS and f.is_file())


def list_images(top: Path, names: tuple[str, ...], low: float, high: float) -> list[LabelledFile]:
    """Return the images of top/CLASS with their labels, in the order of their hash positions.

    Without names, they are the images of top, and their labels are 0. The position is that of the
    path relative to top; those in [low, high) are returned.
    """
    if names:
        labels = {name: i for i, name in enumerate(names) if (top / name).is_dir()}
        images = make_dataset(str(top), labels, IMG_EXTENSIONS, allow_empty=True)
    else:
        images = [(file, 0) for file in list_plain_images(top)]
    placed = []
    for file, label in images:
        position = hash_position(Path(file).relative_to(top).as_posix().encode())
        if low <= position < high:
            placed.append((position, file, label))
    return [(Path(file), label) for _, file, label in sorted(placed)]
