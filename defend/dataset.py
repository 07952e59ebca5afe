"""The base classes of data sets: labelled images in a fixed order, in three splits."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal, cast, dataclass_transform

import numpy as np
import torch
from torch import Tensor

from defend.errors import BadParameter
from defend.files import cache_folder, user_path
from defend.noise import Noise
from defend.registry import REGISTRY
from defend.spec import Configured

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
LABELS_AT_ONCE = 256  # images that are read for their labels


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """The source of a data set, and the budget at which claims are made on it."""

    source: str  # paper or address, as "arXiv:...", "doi:..." or "none: <reason>"
    licence: str
    claim: Mapping[str, float]  # norm -> the eps of a claim; {} if there is none
    # split -> the number of images before their subjects repeat; all images if a split is absent
    distinct: Mapping[Split, int] = field(default_factory=dict)


def data_root(root: str | None = None) -> Path:
    """Return the folder of the data: `root` (--data-root), else DEFEND_DATA, else the user's cache
    folder.
    """
    return user_path(root or os.environ.get("DEFEND_DATA") or cache_folder() / "data")


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class Dataset(Configured):
    """Abstract base of data sets.

    A subclass adds a `card`, `channels`, `size`, `names`, `count` and `_rows`. The split `val` is
    cut from the training images and is never trained on.
    """

    card: ClassVar[DatasetCard]
    splits: ClassVar[tuple[Split, ...]] = SPLITS  # those that it has
    # True: the images are the user's own, so that the name of the data set says nothing of them.
    own_images: ClassVar[bool] = False
    _runtime = frozenset({"root"})
    root: str | None = None  # the folder of the data; no influence on the images

    def __post_init__(self) -> None:
        self.validate()

    @property
    def component(self) -> str:
        """The name under which the class is registered, FILE.py:NAME if it is none."""
        return REGISTRY.component("dataset", type(self))

    @property
    @abstractmethod
    def channels(self) -> int:
        """The number of channels, 1 or 3."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Height and width, in pixels; of images of several sizes the longest side."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""

    @property
    def labelled(self) -> bool:
        """False if the images have no labels: then there are no names, and y is zero."""
        return bool(self.names)

    @property
    def uniform(self) -> bool:
        """False for images of several sizes; those between two `size_changes` have one."""
        return True

    def size_changes(self, split: Split) -> tuple[int, ...]:
        """Return the images from which on the height or the width is another, in rising order."""
        return ()

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.names)

    @abstractmethod
    def count(self, split: Split) -> int:
        """Return the number of images.

        Raise MissingData, naming the expected path and how to get the data.
        """

    @abstractmethod
    def _rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the images and labels of a range that `rows` has checked."""

    def rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return images x float32 (stop - start, c, h, w) in [0, 1] and labels y int64.

        Raise BadParameter for an unknown split, or if the split has fewer images.
        """
        if split not in SPLITS:
            raise BadParameter(f"split {split!r}: expected {', '.join(SPLITS)}")
        count = self.count(split)
        if not 0 <= start <= stop <= count:
            raise BadParameter(
                f"{self.component}: wanted images {start} to {stop} of the {split} split, "
                f"which has {count}; give --n {count} or fewer"
            )
        if any(start < change < stop for change in self.size_changes(split)):
            raise BadParameter(
                f"{self.component}: images {start} to {stop} of the {split} split have several"
                f" sizes, from {', '.join(map(str, self.size_changes(split)))} on; ask for images"
                " of one size, or for squares by size=SIDE"
            )
        x, y = self._rows(split, start, stop)
        self._check_classes(y)
        return x, y

    def count_labels(self, split: Split) -> tuple[int, ...]:
        """Return the number of images of each class. Raise MissingData.

        By default the images are read; override it if labels are at hand without them.
        """
        counts = torch.zeros(self.classes, dtype=torch.int64)
        ends = sorted({*range(0, self.count(split), LABELS_AT_ONCE), *self.size_changes(split)})
        for start, stop in pairwise([*ends, self.count(split)]):
            counts += self.rows(split, start, stop)[1].bincount(minlength=self.classes)
        return tuple(counts.tolist())

    def _check_classes(self, y: Tensor) -> None:
        """Raise BadParameter for labels that are none of the names."""
        low, high = (int(label) for label in y.aminmax()) if len(y) else (0, 0)
        if self.labelled and (low < 0 or high >= self.classes):
            raise BadParameter(
                f"{self.component}: expected labels from 0 to {self.classes - 1}, as it names"
                f" {self.classes} classes, got {low} to {high}; name every class"
            )

    def stream(self, split: Split, noise: Noise) -> tuple[Tensor, Tensor] | None:
        """Return len(noise) fresh training images with their labels, or None if the training data
        is finite.
        """
        return None


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class ArrayDataset(Dataset):
    """A data set that fits into memory.

    A subclass writes `arrays`; each split is read once. What `rows` hands out is a copy.
    """

    @abstractmethod
    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Return images (n, c, h, w), uint8 or floats in [0, 1], and whole labels (n,)."""

    def _cached(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return the arrays of a split as tensors, read at the first call."""
        cache = self.__dict__.setdefault("_arrays", {})
        if split not in cache:
            x, y = self.arrays(split)
            name = f"{self.component}, split {split}"
            cache[split] = check_images(x, name), check_labels(y, len(x), self.classes, name)
        return cast(tuple[Tensor, Tensor], cache[split])

    def count_labels(self, split: Split) -> tuple[int, ...]:
        """Return the number of images of each class. Raise MissingData."""
        return tuple(self._cached(split)[1].bincount(minlength=self.classes).tolist())

    def count(self, split: Split) -> int:
        """Return the number of images. Raise MissingData."""
        return len(self._cached(split)[0])

    def _rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        x, y = self._cached(split)
        return copy_pixels(x[start:stop]), y[start:stop].clone()


def copy_pixels(images: Tensor) -> Tensor:
    """Return images, uint8 or floats in [0, 1], as new floats in [0, 1]."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.clone()


def check_images(x: np.ndarray, name: str) -> Tensor:
    """Return images (n, c, h, w) as uint8, or as float32 in [0, 1].

    name: the data set, for messages. Raise BadParameter for other arrays.
    """
    if x.ndim != 4:
        raise BadParameter(f"{name}: expected images (n, c, h, w), got shape {x.shape}")
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x))
    is_float = x.dtype.kind == "f" and bool(np.isfinite(x).all())
    low, high = (float(x.min()), float(x.max())) if is_float and x.size else (0.0, 1.0)
    if not is_float or low < 0 or high > 1:
        received = f"{x.dtype} from {low:g} to {high:g}" if is_float else f"{x.dtype}, or NaN"
        raise BadParameter(
            f"{name}: expected uint8, or finite floats in [0, 1], got {received}; divide by"
            " 255, or undo the normalisation: leave normalisation to the classifier"
        )
    return torch.from_numpy(np.ascontiguousarray(x, np.float32))


def check_labels(y: np.ndarray, n: int, classes: int, name: str) -> Tensor:
    """Return the labels (n,) as int64.

    classes: 0 for images without labels. Raise BadParameter for labels that are not whole, too few
    or too large.
    """
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise BadParameter(
            f"{name}: expected {n} whole labels, one label for each image, got {y.dtype} {y.shape}"
        )
    low, high = (int(y.min()), int(y.max())) if n else (0, 0)
    if low < 0 or (classes and high >= classes):
        wanted = f"to {classes - 1}, as it names {classes} classes" if classes else "on"
        raise BadParameter(f"{name}: expected labels from 0 {wanted}, got {low} to {high}")
    return torch.from_numpy(y.astype(np.int64))


def held_out(x: np.ndarray, share: float) -> np.ndarray:
    """Return the mask (n,) of the training images that belong to `val`, a share of all.

    The hash of the pixels decides, so that copies of an image stay together.
    """
    hashes = [hashlib.blake2b(image.tobytes(), digest_size=4).digest() for image in x]
    numbers = [int.from_bytes(digest, "big") for digest in hashes]
    return np.array(numbers, np.int64) < share * 2**32
