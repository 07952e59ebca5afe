"""A data set of a third party: stripes in two directions, computed and not read from disk."""

import numpy as np

from defend import ArrayDataset, DatasetCard
from defend.dataset import Split

IMAGES = 256


class Stripes(ArrayDataset):
    """Sine waves of random phase and period on 8x8 pixels, along rows (0) or columns (1)."""

    card = DatasetCard(source="none: synthetic", licence="MIT", claim={"Linf": 0.1})
    channels = 1
    size = 8
    names = ("rows", "columns")

    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(("train", "val", "test").index(split))
        phase = rng.uniform(0, 2 * np.pi, (IMAGES, 1))
        period = rng.uniform(2, 6, (IMAGES, 1))
        wave = np.rint(127.5 + 127.5 * np.sin(phase + 2 * np.pi * np.arange(8) / period))
        along_rows = np.repeat(wave[:, :, None], 8, 2)
        along_columns = along_rows.transpose(0, 2, 1)
        y = np.arange(IMAGES) % 2
        x = np.where(y[:, None, None] == 0, along_rows, along_columns)
        return x[:, None].astype(np.uint8), y
