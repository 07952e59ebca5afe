"""The UCI digits that come with scikit-learn, in three fixed splits: what `digits` shows and `digits-m` blends into photographs."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from sklearn.datasets import load_digits

from defend.dataset import Split

SOURCE = "doi:10.24432/C50P49"  # Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
TOP = 16  # grey levels 0..16
EDGES: dict[Split, tuple[float, float]] = {
    "test": (0, 0.3),
    "val": (0.3, 0.4),
    "train": (0.4, 1),
}  # of the hash's range


@cache
def digits(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """x uint8 (n, 8, 8) in 0..16, y int64 (n,). Both the split and the order go by the hash of the pixels."""
    images, labels = load_digits(return_X_y=True)
    x = images.astype(np.uint8).reshape(-1, 8, 8)
    place = np.array([place_of(image.tobytes()) for image in x])
    low, high = EDGES[split]
    order = np.argsort(place, kind="stable")
    order = order[(place[order] >= low) & (place[order] < high)]
    return x[order], labels[order].astype(np.int64)


def place_of(data: bytes) -> float:
    """A hash in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48
