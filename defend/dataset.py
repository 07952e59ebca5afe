"""What an author of data sets subclasses: labelled images in a fixed order, in three splits."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, cast, dataclass_transform

import numpy as np
import torch
from torch import Tensor

from defend.errors import BadParameter
from defend.files import cache_folder
from defend.noise import Noise
from defend.spec import Configured

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    source: str  # paper or address, as "arXiv:...", "doi:..." or "none: <reason>"
    licence: str
    claim: Mapping[str, float]  # norm -> the eps of a claim, {} where there is none
    distinct: Mapping[Split, int] = field(
        default_factory=dict
    )  # split -> how many come before what they show comes again; left out: all


def data_root(root: str | None = None) -> Path:
    """--data-root, else DEFEND_DATA, else the user's cache folder."""
    return Path(root or os.environ.get("DEFEND_DATA") or cache_folder() / "data")


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class Dataset(Configured):
    """Abstract. A subclass adds a `card`, `shape`, `names`, `count` and `_rows`. `val` is cut from training and never trained on."""

    card: ClassVar[DatasetCard]
    _runtime = frozenset({"root"})
    root: str | None = None  # where data lies; says nothing about what it is

    def __post_init__(self) -> None:
        self.validate()

    @property
    @abstractmethod
    def channels(self) -> int: ...

    @property
    @abstractmethod
    def size(self) -> int:
        """Height and width, in pixels."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of the classes, in the order of the labels."""

    @property
    def classes(self) -> int:
        return len(self.names)

    @abstractmethod
    def count(self, split: Split) -> int:
        """Raises MissingData, naming the expected path and how to get the data."""

    @abstractmethod
    def _rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """What `rows` returns; the range is checked already."""

    def rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """x float32 (stop - start, c, h, w) in [0, 1], y int64. Raises BadParameter where there are not so many."""
        if split not in SPLITS:
            raise BadParameter(f"split {split!r}: expected {', '.join(SPLITS)}")
        there = self.count(split)
        if not 0 <= start <= stop <= there:
            raise BadParameter(
                f"{type(self).__name__}: wanted images {start} to {stop} of the {split} split, which has {there}; give --n {there} or fewer"
            )
        return self._rows(split, start, stop)

    def stream(self, split: Split, noise: Noise) -> tuple[Tensor, Tensor] | None:
        """len(noise) fresh training images with their labels, for data without an end; None where training data has an end."""
        return None


@dataclass_transform(kw_only_default=True, eq_default=False)
@dataclass(kw_only=True, eq=False)
class ArrayDataset(Dataset):
    """A data set that fits into memory as uint8. A subclass writes `arrays`; each split is read once."""

    @abstractmethod
    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """x uint8 (n, c, h, w), y int64 (n,)."""

    def _cached(self, split: Split) -> tuple[Tensor, Tensor]:
        kept = self.__dict__.setdefault("_arrays", {})
        if split not in kept:
            x, y = self.arrays(split)
            kept[split] = (
                torch.from_numpy(np.ascontiguousarray(x)),
                torch.from_numpy(y.astype(np.int64)),
            )
        return cast(tuple[Tensor, Tensor], kept[split])

    def count(self, split: Split) -> int:
        return len(self._cached(split)[0])

    def _rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        x, y = self._cached(split)
        return x[start:stop].float().div_(255), y[start:stop].clone()


def held_out(x: np.ndarray, share: float) -> np.ndarray:
    """Which training images belong to `val`: bool (n,), by the hash of the pixels, so that copies of an image stay together."""
    first = [
        int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=4).digest(), "big")
        for image in x
    ]
    return np.array(first, np.int64) < share * 2**32
