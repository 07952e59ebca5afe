"""Fashion-MNIST: Xiao, Rasul, Vollgraf, arXiv:1708.07747.

The paper is "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms".
"""

from __future__ import annotations

import numpy as np
from torchvision.datasets import FashionMNIST as TorchvisionFashionMNIST

from defend.dataset import ArrayDataset, DatasetCard, Split, data_root, held_out
from defend.datasets.downloads import read_or_download

VAL = 1 / 12  # share of the 60,000 training images that are the val split: about 5,000


class FashionMNIST(ArrayDataset):
    """Provide articles of clothing, grey 28x28.

    The test images have the official order; `val` is cut from training by hash.
    """

    card = DatasetCard(source="arXiv:1708.07747", licence="MIT", claim={"Linf": 0.1})
    channels = 1
    size = 28
    names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    checksum = "21c725a5709acaa1"  # of the first 64 test images and labels

    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Return x uint8 (n, 1, 28, 28) and y (n,). Raises MissingData if there are no files."""
        root = data_root(self.root)
        source = read_or_download(
            lambda download: TorchvisionFashionMNIST(
                root, train=split != "test", download=download
            ),
            root / "FashionMNIST" / "raw",
            "FashionMNIST",
        )
        x, y = source.data.numpy()[:, None], source.targets.numpy()
        if split == "test":
            return x, y
        in_split = held_out(x, VAL) == (split == "val")
        return x[in_split], y[in_split]
