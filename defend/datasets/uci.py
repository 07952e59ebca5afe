"""The UCI digits that come with scikit-learn, in three fixed splits.

`digits` returns them as they are, `digits-m` blends them into photographs.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn.datasets import load_digits

from defend.dataset import Split
from defend.datasets.hash_order import hash_position

# Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
SOURCE = "doi:10.24432/C50P49"
MAX_LEVEL = 16  # grey levels are 0..16

# The range of hash positions of each split.
RANGES: dict[Split, tuple[float, float]] = {"test": (0, 0.3), "val": (0.3, 0.4), "train": (0.4, 1)}


@cache
def read_digits(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return x uint8 (n, 8, 8) in 0..16 and y int64 (n,).

    Both the split and the order are decided by the hash of the pixels.
    """
    images, labels = load_digits(return_X_y=True)
    x = images.astype(np.uint8).reshape(-1, 8, 8)
    positions = np.array([hash_position(image.tobytes()) for image in x])
    low, high = RANGES[split]
    order = np.argsort(positions, kind="stable")
    order = order[(positions[order] >= low) & (positions[order] < high)]
    return x[order], labels[order].astype(np.int64)
