"""A data set of a third party: stripes of two directions, made and not read."""

import numpy as np

from defend import ArrayDataset, DatasetCard
from defend.dataset import Split


class Stripes(ArrayDataset):
    """Sine waves of random phase and period on 8x8 pixels, along rows (0) or columns (1)."""

    card = DatasetCard(source="none: synthetic", licence="MIT", claim={"Linf": 0.1})
    channels = 1
    size = 8
    names = ("rows", "columns")

    def arrays(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(("train", "val", "test").index(split))
        phase, period = rng.uniform(0, 2 * np.pi, (256, 1)), rng.uniform(2, 6, (256, 1))
        wave = np.rint(127.5 + 127.5 * np.sin(phase + 2 * np.pi * np.arange(8) / period))
        y = np.arange(256) % 2
        tall = np.repeat(wave[:, :, None], 8, 2)
        return np.where(y[:, None, None] == 0, tall, tall.transpose(0, 2, 1))[:, None].astype(
            np.uint8
        ), y
