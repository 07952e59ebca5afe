"""CIFAR-10: Krizhevsky, "Learning multiple layers of features from tiny images", 2009, chapter 3."""

from __future__ import annotations

import numpy as np
from torchvision.datasets import CIFAR10 as Source

from defend.dataset import ArrayDataset, DatasetCard, Split, data_root, held_out
from defend.datasets.downloads import fetched

VAL = 0.08  # of the 50,000 training images: about 4,000


class Cifar10(ArrayDataset):
    """Photographs of ten kinds of things, RGB 32x32; the official test images in their order, `val` cut from training by hash.

    The published batches are pickles: torchvision reads them only where their MD5 is the published one.
    """

    card = DatasetCard(
        source="https://www.cs.toronto.edu/~kriz/cifar.html",  # Krizhevsky, "Learning multiple layers of features from tiny images", 2009
        licence="not stated by its authors; a public benchmark",
        claim={"Linf": 8 / 255, "L2": 0.5},
    )
    channels = 3
    size = 32
    names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )

    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        root = data_root(self.root)
        source = fetched(
            lambda download: Source(root, train=split != "test", download=download),
            root / "cifar-10-batches-py",
            "CIFAR10",
        )
        x, y = np.ascontiguousarray(source.data.transpose(0, 3, 1, 2)), np.array(source.targets)
        if split == "test":
            return x, y
        mine = held_out(x, VAL) == (split == "val")
        return x[mine], y[mine]
