"""Tiny untrained restorers, random tensors and real digits for the tests of `split-vqvae`."""

import torch
from sklearn.datasets import load_digits

from defend.noise import Noise

SMALL = {"weights": "untrained", "codes": 20, "embedding_dim": 6, "hidden": 8}
TINY = {"size": 8, "grid": 2, **SMALL}


def real_digits():
    """Return x (512, 1, 8, 8) in [0, 1] and the labels (512,)."""
    data = load_digits()
    x = torch.tensor(data.images[:512, None] / 16, dtype=torch.float32)
    return x, torch.tensor(data.target[:512])


def noise(n, name="x"):
    """Return streams of noise for n images."""
    return Noise.of(0, torch.arange(n)).fork(name)


def random_normal(*shape, seed=0):
    """Return normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
