"""UCI digits: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", 1998.

scikit-learn ships them, so neither a network nor files are needed.
"""

from __future__ import annotations

import numpy as np

from defend.dataset import ArrayDataset, DatasetCard, Split
from defend.datasets import uci


class Digits(ArrayDataset):
    """Provide 1,797 handwritten digits, grey 8x8, with seventeen levels.

    The pixels are as published, because enlarging them adds no information.
    """

    card = DatasetCard(source=uci.SOURCE, licence="CC BY 4.0", claim={"Linf": 0.2})
    channels = 1
    size = 8
    names = tuple("0123456789")
    checksum = "556040ccd409981e"  # of the first 64 test images and labels

    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Return x uint8 (n, 1, 8, 8) in 0..255 and y int64 (n,)."""
        x, y = uci.read_digits(split)
        return np.rint(x[:, None] * (255 / uci.MAX_LEVEL)).astype(np.uint8), y
