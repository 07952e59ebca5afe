"""MNIST: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998."""

from __future__ import annotations

import numpy as np
from torchvision.datasets import MNIST as Source

from defend.dataset import ArrayDataset, DatasetCard, Split, data_root, held_out
from defend.datasets.downloads import fetched

VAL = 1 / 12  # of the 60,000 training images: about 5,000


class MNIST(ArrayDataset):
    """Handwritten digits, grey 28x28; the official test images in their order, `val` cut from training by hash."""

    card = DatasetCard(
        source="doi:10.1109/5.726791",
        licence="not stated by its authors; a public benchmark",
        claim={"Linf": 0.3},
    )
    channels = 1
    size = 28
    names = tuple("0123456789")
    checksum = "dd839ac419f7c910"  # of the first 64 test images and labels

    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        root = data_root(self.root)
        source = fetched(
            lambda download: Source(root, train=split != "test", download=download),
            root / "MNIST" / "raw",
            "MNIST",
        )
        x, y = source.data.numpy()[:, None], source.targets.numpy()
        if split == "test":
            return x, y
        mine = held_out(x, VAL) == (split == "val")
        return x[mine], y[mine]
