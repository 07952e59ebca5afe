"""Image files, whole splits and grey levels for the tests of data sets."""

from itertools import product

import numpy as np
import torch
from PIL import Image

# Relative paths of 60 images for each of three classes.
THREE_CLASSES = [f"{name}/{i:03d}.png" for name, i in product(("ant", "bee", "cat"), range(60))]


def all_rows(data, split):
    """Return all images and labels of a split."""
    return data.rows(split, 0, data.count(split))


def image_bytes(data, split):
    """Return the pixels of each image of a split as bytes."""
    return [image.numpy().tobytes() for image in all_rows(data, split)[0]]


def grey_levels(x):
    """Return the levels 0..255 of x, which must be exact."""
    levels = (x * 255).round()
    assert torch.allclose(levels / 255, x, atol=1e-7)
    return levels.numpy().astype(np.int64)


def write_images(top, relative_paths, size=(9, 9)):
    """Write a random image for each relative path; its pixels depend on the path alone."""
    for name in relative_paths:
        generator = np.random.default_rng([0, *name.encode()])
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(top / name)
