"""UCI digits: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", 1998, as scikit-learn ships them. No network, no files."""

from __future__ import annotations

import numpy as np

from defend.dataset import ArrayDataset, DatasetCard, Split
from defend.datasets import uci


class Digits(ArrayDataset):
    """1,797 handwritten digits, grey 8x8, seventeen levels: the pixels as published, since enlarging adds none."""

    card = DatasetCard(source=uci.SOURCE, licence="CC BY 4.0", claim={"Linf": 0.2})
    channels = 1
    size = 8
    names = tuple("0123456789")
    checksum = "556040ccd409981e"  # of the first 64 test images and labels

    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        x, y = uci.digits(split)
        return np.rint(x[:, None] * (255 / uci.TOP)).astype(np.uint8), y
