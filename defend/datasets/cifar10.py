"""CIFAR-10: Krizhevsky, 2009, chapter 3.

The report is "Learning multiple layers of features from tiny images".
"""

from __future__ import annotations

import numpy as np
from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

from defend.dataset import ArrayDataset, DatasetCard, Split, data_root, held_out
from defend.datasets.downloads import read_or_download

VAL = 0.08  # share of the 50,000 training images that are the val split: about 4,000


class Cifar10(ArrayDataset):
    """Provide photographs of ten classes of vehicles and animals, RGB 32x32.

    The test images have the official order; `val` is cut from training by hash. The published
    batches are pickles: torchvision reads them only if their MD5 is the published one.
    """

    card = DatasetCard(
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
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
        """Return x uint8 (n, 3, 32, 32) and y (n,). Raises MissingData if there are no files."""
        root = data_root(self.root)
        source = read_or_download(
            lambda download: TorchvisionCIFAR10(root, train=split != "test", download=download),
            root / "cifar-10-batches-py",
            "CIFAR10",
        )
        x = np.ascontiguousarray(source.data.transpose(0, 3, 1, 2))
        y = np.array(source.targets)
        if split == "test":
            return x, y
        in_split = held_out(x, VAL) == (split == "val")
        return x[in_split], y[in_split]
