"""Folders of images in torchvision's ImageFolder layout, decoded one by one when rows are read."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
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
from defend.errors import MissingData, count_of
from defend.files import user_path

# The range of hash positions of each split, if one folder holds all images.
RANGES: dict[Split, tuple[float, float]] = {"test": (0, 0.2), "val": (0.2, 0.3), "train": (0.3, 1)}
MAX_LISTED = 10  # files that an error names
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

    @property
    def least_classes(self) -> int:
        """Return how many folders of classes there must be."""
        return 2

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the classes in the order of their labels, none of images without labels."""
        return self.class_folders

    @property
    def folder_labels(self) -> Mapping[str, int]:
        """Return the label of the images in each folder of a class."""
        return {name: label for label, name in enumerate(self.names)}

    @property
    def splits(self) -> tuple[Split, ...]:  # type: ignore[override]  # here the folder decides
        """Return the splits that have images: all of a folder that is cut into three."""
        try:
            missing = set(SPLITS) - set(self._split_folders)
        except MissingData:  # `count` says so
            return SPLITS
        if not self._split_folders:
            return SPLITS
        return tuple(s for s in SPLITS if s not in missing or self._is_cut_from_train(s))

    @cached_property
    def class_folders(self) -> tuple[str, ...]:
        """Return the sorted folders of classes of all splits, none of images without labels.

        Raises MissingData for too few classes, or for a folder without images.
        """
        tops = [self.folder / split for split in self._split_folders] or [self.folder]
        names: set[str] = set()
        for top in tops:
            names.update(list_classes(top))
        is_unlabelled = not names and any(list_plain_images(top) for top in tops)
        if len(names) < self.least_classes and not is_unlabelled:
            raise MissingData(
                f"{self.folder}: expected a folder of images for each of two or more classes, or"
                f" train, val and test with such folders in each, got {len(names)} classes; images"
                " without labels lie in no folder of a class"
            )
        return tuple(sorted(names))

    @cached_property
    def _split_folders(self) -> tuple[Split, ...]:
        """Return the splits that have a folder of their own; none if one folder is cut into three.

        A class may be called "train", but a folder "train" beside a folder "test" is a split.
        """
        names = set(list_classes(self.folder))
        if not names <= set(SPLITS) and not {"train", "test"} <= names:
            return ()
        return tuple(split for split in SPLITS if split in names)

    def _is_cut_from_train(self, split: Split) -> bool:
        """Return True for val without a folder of its own."""
        return (
            split == "val" and "val" not in self._split_folders and "train" in self._split_folders
        )

    def count(self, split: Split) -> int:
        """Return the number of images. Raises MissingData if there is no folder for the split."""
        return len(self._files(split))

    def _rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        files = self._files(split)[start:stop]
        x = np.empty((len(files), self.channels, self.size, self.size), np.uint8)
        unreadable = []
        for i, (file, _) in enumerate(files):
            try:
                x[i] = self.read(file)
            except MissingData as e:
                unreadable.append(str(e))
        if unreadable:
            raise MissingData(_describe_unreadable(unreadable, len(files)))
        y = torch.tensor([label for _, label in files], dtype=torch.int64)
        return torch.from_numpy(x).float().div_(255), y

    def read(self, file: Path) -> np.ndarray:
        """Return uint8 (c, size, size) of one image. Raise MissingData if the file is no image."""
        return read_pixels(file, self.size, self.channels)

    def count_labels(self, split: Split) -> tuple[int, ...]:
        """Return the number of images of each class; none is read. Raise MissingData."""
        counts = Counter(label for _, label in self._files(split))
        return tuple(counts[label] for label in range(self.classes))

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
        labels = self.folder_labels
        if not self._split_folders:
            return list_images(self.folder, labels, *RANGES[split])
        if self._is_cut_from_train(split):
            return list_images(self.folder / "train", labels, 0.0, VAL)
        if split not in self._split_folders:
            raise MissingData(
                f"{type(self).__name__}: there is no {self.folder / split}; expected"
                f" {split}/CLASS/*.png there, or give --split {' or '.join(self.splits)}"
            )
        is_cut = split == "train" and "val" not in self._split_folders
        return list_images(self.folder / split, labels, VAL if is_cut else 0.0, 1.0)


class PathFolder(FolderDataset):
    """Provide the images of the folder that the field `path` names. Abstract."""

    own_images = True
    expected: ClassVar[str] = "FOLDER/CLASS/*.png in it"  # for the error text
    path: str  # a folder, or a folder inside the data root

    @property
    def folder(self) -> Path:
        """Return the folder of the images. Raises MissingData if it does not exist."""
        path = user_path(self.path)
        # Joined to an absolute path, the data root disappears.
        candidates = [path, data_root(self.root) / path]
        for candidate in candidates:
            if candidate.is_dir():
                return candidate
        name = self.component
        places = " or ".join(dict.fromkeys(str(c.absolute()) for c in candidates))
        raise MissingData(
            f"{name}:path={self.path}: there is no folder {places}; write"
            f" {name}:path=FOLDER with {self.expected}"
        )


def _describe_unreadable(reasons: list[str], count: int) -> str:
    """Return the error for the files of a range that cannot be read."""
    listed = "; ".join(reasons[:MAX_LISTED])
    rest = f"; and {len(reasons) - MAX_LISTED} more" if len(reasons) > MAX_LISTED else ""
    subject = f"{len(reasons)} of {count_of(count, 'image')}"
    return f"{subject} cannot be read: {listed}{rest}; remove or mend them"


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


def list_images(
    top: Path, labels: Mapping[str, int], low: float, high: float
) -> list[LabelledFile]:
    """Return the images of top/CLASS with their labels, in the order of their hash positions.

    Without labels, they are the images of top, and their labels are 0. The position is that of the
    path relative to top; those in [low, high) are returned.
    """
    if labels:
        present = {name: label for name, label in labels.items() if (top / name).is_dir()}
        images = make_dataset(str(top), present, IMG_EXTENSIONS, allow_empty=True)
    else:
        images = [(file, 0) for file in list_plain_images(top)]
    placed = []
    for file, label in images:
        position = hash_position(os.fsencode(Path(file).relative_to(top).as_posix()))
        if low <= position < high:
            placed.append((position, file, label))
    return [(Path(file), label) for _, file, label in sorted(placed)]
