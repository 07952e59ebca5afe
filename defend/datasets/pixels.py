"""Image files as arrays of one size: the central square, averaged down by area or enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from defend.errors import BadParameter, MissingData
from defend.image_files import open_upright


def read_pixels(file: Path, size: int, channels: int) -> np.ndarray:
    """Return uint8 (c, size, size): the central square of the image, scaled.

    Raises MissingData if the file is no image.
    """
    image = crop_square(read_image(file, channels))
    side = image.width
    if side < size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    x = np.asarray(image).reshape(*image.size, channels).transpose(2, 0, 1)
    return average_down(x, size) if side > size else x


def read_image(file: Path, channels: int) -> Image.Image:
    """Return the whole image, grey for one channel. Raises MissingData if the file is no image."""
    try:
        return open_upright(file).convert("L" if channels == 1 else "RGB")
    except BadParameter as e:
        raise MissingData(str(e)) from None


def crop_square(image: Image.Image) -> Image.Image:
    """Return the central square of the image."""
    side = min(image.size)
    x, y = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((x, y, x + side, y + side))


def average_down(x: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 (c, size, size) from x uint8 (c, n, n), size <= n, by means over areas.

    A pixel that lies in two areas counts in each by its share.
    """
    w = area_weights(x.shape[-1], size)
    rounded: np.ndarray = np.rint(w @ x.astype(np.float32) @ w.T).clip(0, 255).astype(np.uint8)
    return rounded


def area_weights(n: int, m: int) -> np.ndarray:
    """Return weights (m, n) that average n samples into m: the share of each sample in an
    output."""
    low = np.arange(m)[:, None] * (n / m)
    share: np.ndarray = np.minimum(low + n / m, np.arange(n) + 1) - np.maximum(low, np.arange(n))
    return (share.clip(0) * (m / n)).astype(np.float32)
