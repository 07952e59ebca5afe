"""Photographs, noise and gradients for the tests of purifiers."""

import torch
from sklearn.datasets import load_sample_images

from defend.noise import Noise

# Two photographs (3, 427, 640) in [0, 1].
PHOTOS = [torch.tensor(image).permute(2, 0, 1) / 255 for image in load_sample_images().images]


def crops(h, w):
    """Return a crop (2, 3, h, w) of each photograph."""
    return torch.stack([photo[:, 100 : 100 + h, 200 : 200 + w] for photo in PHOTOS])


def noise(n, seed=0):
    """Return streams of noise for n images."""
    return Noise.of(seed, torch.arange(n))


def random_like(x, seed=0):
    """Return normal numbers in the shape and dtype of x."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


def purifier_gradient(purifier, x, output_gradient):
    """Return the gradient for x of the purified images times `output_gradient`."""
    x = x.clone().requires_grad_()
    value = (purifier.purified(x, noise(len(x))) * output_gradient).sum()
    return torch.autograd.grad(value, x)[0]
