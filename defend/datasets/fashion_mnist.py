"""Fashion-MNIST: Xiao, Rasul, Vollgraf, arXiv:1708.07747.

The paper is "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms".
"""

from __future__ import annotations

from defend.dataset import DatasetCard
from defend.datasets.idx import IdxDataset


class FashionMNIST(IdxDataset):
    """Provide articles of clothing, grey 28x28.

    The test images have the official order; `val` is cut from training by hash.
    """

    card = DatasetCard(source="arXiv:1708.07747", licence="MIT", claim={"Linf": 0.1})
    archive = "FashionMNIST"
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
