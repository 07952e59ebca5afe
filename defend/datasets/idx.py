"""Data sets in the IDX format of MNIST: yann.lecun.com/exdb/mnist, section "file formats".

The files are read here, since importing torchvision takes longer than a small benchmark; where
files are absent or damaged, torchvision downloads them, or says what is wrong with them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from defend.dataset import ArrayDataset, Split, data_root, held_out
from defend.datasets.downloads import read_or_download

VAL = 1 / 12  # share of the 60,000 training images that are the val split: about 5,000
_UINT8 = 8  # the code of the element type, third byte of a file


class IdxDataset(ArrayDataset):
    """Provide a data set that torchvision stores as four IDX files below `archive`/raw.

    The test images have the official order; `val` is cut from training by hash.
    """

    archive = ""  # torchvision's name of the data set, which is its folder too

    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Return x uint8 (n, 1, 28, 28) and y (n,). Raises MissingData if there are no files."""
        x, y = _read(data_root(self.root), self.archive, train=split != "test")
        if split == "test":
            return x, y
        in_split = held_out(x, VAL) == (split == "val")
        return x[in_split], y[in_split]


def _read(root: Path, archive: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 1, h, w) and labels (n,), both of the official order."""
    folder, part = root / archive / "raw", "train" if train else "t10k"
    try:
        x = read_idx(folder / f"{part}-images-idx3-ubyte")
        y = read_idx(folder / f"{part}-labels-idx1-ubyte")
    except (OSError, ValueError):
        x, y = _read_by_torchvision(root, archive, train)
    return x[:, None], y.astype(np.int64)


def _read_by_torchvision(root: Path, archive: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    import torchvision.datasets

    build = getattr(torchvision.datasets, archive)
    source = read_or_download(
        lambda download: build(root, train=train, download=download),
        root / archive / "raw",
        archive,
    )
    return source.data.numpy(), source.targets.numpy()


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file of bytes, uint8.

    Raises OSError where it cannot be read, and ValueError where its length is not that of its
    header.
    """
    data = path.read_bytes()
    if len(data) < 4 or data[:3] != bytes([0, 0, _UINT8]):
        raise ValueError(f"{path} is no IDX file of bytes")
    axes = data[3]
    shape = tuple(np.frombuffer(data, ">u4", axes, offset=4).tolist())
    if len(data) != 4 + 4 * axes + math.prod(shape):
        raise ValueError(f"{path}: expected {shape} bytes, got {len(data) - 4 - 4 * axes}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
