"""MNIST: LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86(11), 1998.

The paper is "Gradient-based learning applied to document recognition".
"""

from __future__ import annotations

import numpy as np
from torchvision.datasets import MNIST as TorchvisionMNIST

from defend.dataset import ArrayDataset, DatasetCard, Split, data_root, held_out
from defend.datasets.downloads import read_or_download

VAL = 1 / 12  # share of the 60,000 training images that are the val split: about 5,000


class MNIST(ArrayDataset):
    """Provide handwritten digits, grey 28x28.

    The test images have the official order; `val` is cut from training by hash.
    """

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
        """Return x uint8 (n, 1, 28, 28) and y (n,). Raises MissingData if there are no files."""
        root = data_root(self.root)
        source = read_or_download(
            lambda download: TorchvisionMNIST(root, train=split != "test", download=download),
            root / "MNIST" / "raw",
            "MNIST",
        )
        x, y = source.data.numpy()[:, None], source.targets.numpy()
        if split == "test":
            return x, y
        in_split = held_out(x, VAL) == (split == "val")
        return x[in_split], y[in_split]
