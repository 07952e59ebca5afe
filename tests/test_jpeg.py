"""JPEG against Pillow's encoder and decoder, and its surrogate gradient."""

import io

import numpy as np
import pytest
import torch
from photographs import PHOTOS, crops, purifier_gradient, random_like
from PIL import Image

from defend.defenses.jpeg import Jpeg, quantise
from defend.loading import load


def pillow_levels(x, **options):
    """Return x (b, c, h, w) after Pillow's encoder and decoder, in grey levels 0..255."""
    levels = []
    for image in (x * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        pixels = image if image.shape[2] == 3 else image[:, :, 0]
        Image.fromarray(pixels).save(file, "jpeg", **options)
        decoded = np.atleast_3d(np.asarray(Image.open(file)))
        levels.append(torch.tensor(decoded).permute(2, 0, 1))
    return torch.stack(levels)


def assert_equals_pillow(x, quality, subsampling="4:2:0"):
    """Require that 99 % of the pixels are equal: the arithmetic is libjpeg's, not close by luck."""
    options = {"subsampling": subsampling} if x.shape[1] == 3 else {}
    expected = pillow_levels(x, quality=quality, **options)
    difference = (Jpeg(quality=quality, subsampling=subsampling).purified(x) * 255 - expected).abs()
    far, unequal = (difference >= 2).float().mean(), (difference >= 0.5).float().mean()
    assert far <= 0.01, f"{far:.4f} of the pixels are two levels or more away"
    assert unequal <= 0.01, f"{unequal:.4f} of the pixels differ"


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [5, 20, 50, 75, 90, 100])
def test_jpeg_equals_pillow(quality, subsampling):
    assert_equals_pillow(torch.stack(PHOTOS), quality, subsampling)


@pytest.mark.parametrize(
    "shape", [(32, 32), (28, 28), (33, 47), (17, 8), (16, 24), (7, 9), (5, 3), (1, 1)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_equals_pillow_at_odd_sizes(shape, channels):
    for quality in (30, 75, 95):
        assert_equals_pillow(crops(*shape)[:, :channels], quality)


@pytest.mark.data("kodak")
def test_jpeg_equals_pillow_on_kodak(data_root):
    paths = sorted((data_root / "kodak").rglob("*"))
    files = [path for path in paths if path.suffix.lower() in (".png", ".bmp", ".webp")][:4]
    for path in files:
        image = torch.tensor(np.asarray(Image.open(path).convert("RGB")))
        assert_equals_pillow(image.permute(2, 0, 1)[None] / 255, 75)
    assert files


@pytest.mark.data("cifar-10-batches-py")
def test_jpeg_equals_pillow_on_cifar(data_root):
    x, _ = load("cifar10", "dataset", root=str(data_root)).rows("test", 0, 200)
    for quality in (25, 75):
        assert_equals_pillow(x, quality)


def test_jpeg_rounds_pixels_and_does_not_truncate_them():
    x = torch.full((1, 1, 8, 8), 100.9 / 255)
    assert torch.equal(Jpeg(quality=100).purified(x), torch.full((1, 1, 8, 8), 101 / 255))


INTEGER_COEFFICIENTS = {
    "black": torch.zeros(1, 3, 16, 16),
    "white": torch.ones(1, 3, 16, 16),
    "compressed before": Jpeg().purified(crops(16, 16)),
}


@pytest.mark.parametrize("x", INTEGER_COEFFICIENTS.values(), ids=INTEGER_COEFFICIENTS)
def test_jpeg_has_a_gradient_where_every_coefficient_is_an_integer(x):
    gradient = purifier_gradient(Jpeg(), x, random_like(x))
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_jpeg_rounds_halves_away_from_zero_with_a_smooth_slope():
    z = torch.tensor([-2.5, -0.5, 0.0, 0.2, 0.5, 0.9, 1.0], requires_grad=True)
    rounded = quantise(z)
    assert rounded.tolist() == [-3, -1, 0, 0, 1, 1, 1]
    rounded.sum().backward()
    assert torch.allclose(z.grad, torch.tensor([0.8, 0.8, 0.05, 0.17, 0.8, 0.08, 0.05]))
