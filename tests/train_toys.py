"""Images that a small network learns to classify within a second, and noise for them."""

import torch

from defend.noise import Noise


class Killed(Exception):
    """Raised in the middle of a training run, in place of a process that is killed."""


def brightness_images(n=50, seed=0):
    """Return images (n, 2, 6, 6) with their labels: dark (0), medium (1) or bright (2)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=generator)
    noise = torch.rand(n, 2, 6, 6, generator=generator)
    return (noise + y[:, None, None, None]) / 3, y


def make_noise(n, seed=0):
    return Noise.of(seed, torch.arange(n))
