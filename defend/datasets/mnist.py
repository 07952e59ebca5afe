"""MNIST: LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86(11), 1998.

The paper is "Gradient-based learning applied to document recognition".
"""

from __future__ import annotations

from defend.dataset import DatasetCard
from defend.datasets.idx import IdxDataset


class MNIST(IdxDataset):
    """Provide handwritten digits, grey 28x28.

    The test images have the official order; `val` is cut from training by hash.
    """

    card = DatasetCard(
        source="doi:10.1109/5.726791",
        licence="not stated by its authors; a public benchmark",
        claim={"Linf": 0.3},
    )
    archive = "MNIST"
    channels = 1
    size = 28
    names = tuple("0123456789")
    checksum = "dd839ac419f7c910"  # of the first 64 test images and labels
