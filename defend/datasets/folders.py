"""Folders of images in torchvision's ImageFolder layout, decoded one by one as they are asked for."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, find_classes, make_dataset

from defend.dataset import SPLITS, Dataset, Split
from defend.errors import MissingData

EDGES: dict[Split, tuple[float, float]] = {
    "test": (0, 0.2),
    "val": (0.2, 0.3),
    "train": (0.3, 1),
}  # of the hash's range, one folder
VAL = 0.1  # of train, where only train and test have folders of their own


class FolderDataset(Dataset):
    """Abstract: FOLDER/{train,val,test}/CLASS/*, FOLDER/{train,test}/CLASS/* or FOLDER/CLASS/*, in the order of the hash of the relative path."""

    size: int = 224  # height and width, in pixels: the central square, averaged down by area or enlarged bicubically
    channels: int = 3  # 1: grey

    def validate(self) -> None:
        self.require(self.size >= 1, "size", ">= 1")
        self.require(self.channels in (1, 3), "channels", "1 or 3")

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the images lie. Raises MissingData where there is no such folder."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        tops = (
            [self.folder / s for s in SPLITS if (self.folder / s).is_dir()]
            if self._splits
            else [self.folder]
        )
        found = sorted({name for top in tops for name in classes_in(top)})
        if len(found) < 2:
            raise MissingData(
                f"{self.folder}: expected a folder of images for each of two or more classes, or train, val and test with such folders in each"
            )
        return tuple(found)

    @cached_property
    def _splits(self) -> bool:
        """Has each split a folder of its own? A class may be called "train"; one beside "test" is a split."""
        found = set(classes_in(self.folder))
        return bool(found) and (found <= set(SPLITS) or {"train", "test"} <= found)

    def count(self, split: Split) -> int:
        return len(self._files(split))

    def _rows(self, split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
        files = self._files(split)[start:stop]
        x = np.empty((len(files), self.channels, self.size, self.size), np.uint8)
        for i, (file, _) in enumerate(files):
            x[i] = pixels(file, self.size, self.channels)
        return torch.from_numpy(x).float().div_(255), torch.tensor(
            [label for _, label in files], dtype=torch.int64
        )

    def _files(self, split: Split) -> list[tuple[Path, int]]:
        """Paths with their labels; the folder is read once."""
        kept: dict[Split, list[tuple[Path, int]]] = self.__dict__.setdefault("_listed", {})
        if split not in kept:
            kept[split] = self._list(split)
        return kept[split]

    def _list(self, split: Split) -> list[tuple[Path, int]]:
        own = self.folder / split
        if self._splits and own.is_dir():
            low, high = (
                (VAL, 1.0)
                if split == "train" and not (self.folder / "val").is_dir()
                else (0.0, 1.0)
            )
            return listed(own, self.names, low, high)
        if self._splits and split == "val":
            return listed(self.folder / "train", self.names, 0.0, VAL)
        if self._splits:
            raise MissingData(
                f"{type(self).__name__}: there is no {own}; expected {split}/CLASS/*.png there"
            )
        return listed(self.folder, self.names, *EDGES[split])


def classes_in(folder: Path) -> list[str]:
    """Names of its folders; none is not an error here."""
    try:
        names: list[str] = find_classes(folder)[0]
    except OSError:  # torchvision's word for "no folders" too
        return []
    return [n for n in names if not n.startswith(".")]


def listed(top: Path, names: tuple[str, ...], low: float, high: float) -> list[tuple[Path, int]]:
    """The images of top/CLASS whose hash of the relative path is in [low, high), in the order of that hash."""
    found = make_dataset(
        str(top),
        {name: i for i, name in enumerate(names) if (top / name).is_dir()},
        IMG_EXTENSIONS,
        allow_empty=True,
    )
    placed = sorted(
        (place_of(Path(file).relative_to(top).as_posix()), file, label) for file, label in found
    )
    return [(Path(file), label) for place, file, label in placed if low <= place < high]


def place_of(name: str) -> float:
    """A hash in [0, 1), the same on every machine and file system."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48


def pixels(file: Path, size: int, channels: int) -> np.ndarray:
    """uint8 (c, size, size): the central square, scaled. Raises MissingData where the file is no image."""
    try:
        image: Image.Image = default_loader(str(file)).convert("L" if channels == 1 else "RGB")
    except OSError as e:
        raise MissingData(
            f"{file}: cannot be read as an image ({type(e).__name__}); remove it or copy it anew"
        ) from None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side < size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    x = np.asarray(image).reshape(*image.size, channels).transpose(2, 0, 1)
    return averaged(x, size) if side > size else x


def averaged(x: np.ndarray, size: int) -> np.ndarray:
    """uint8 (c, n, n) -> (c, size, size), size <= n: means over areas, shares of pixels counted."""
    w = overlaps(x.shape[-1], size)
    whole: np.ndarray = np.rint(w @ x.astype(np.float32) @ w.T).clip(0, 255).astype(np.uint8)
    return whole


def overlaps(n: int, m: int) -> np.ndarray:
    """Weights (m, n): which share of output i comes from sample j when n samples are averaged into m."""
    low = np.arange(m)[:, None] * (n / m)
    share: np.ndarray = np.minimum(low + n / m, np.arange(n) + 1) - np.maximum(low, np.arange(n))
    return (share.clip(0) * (m / n)).astype(np.float32)
