"""Fashion-MNIST: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", arXiv:1708.07747."""

from __future__ import annotations

import numpy as np
from torchvision.datasets import FashionMNIST as Source

from defend.dataset import ArrayDataset, DatasetCard, Split, data_root, held_out
from defend.datasets.downloads import fetched

VAL = 1 / 12  # of the 60,000 training images: about 5,000


class FashionMNIST(ArrayDataset):
    """Articles of clothing, grey 28x28; the official test images in their order, `val` cut from training by hash."""

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
        root = data_root(self.root)
        source = fetched(
            lambda download: Source(root, train=split != "test", download=download),
            root / "FashionMNIST" / "raw",
            "FashionMNIST",
        )
        x, y = source.data.numpy()[:, None], source.targets.numpy()
        if split == "test":
            return x, y
        mine = held_out(x, VAL) == (split == "val")
        return x[mine], y[mine]
