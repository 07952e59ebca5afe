"""Bit depth, Gaussian noise and the median against their definitions, and fields out of range."""

import numpy as np
import pytest
import torch
from photographs import PHOTOS, crops, noise, purifier_gradient
from scipy.ndimage import median_filter

from defend.defenses import median
from defend.defenses.bitdepth import BitDepth
from defend.defenses.gaussian import GaussianNoise
from defend.defenses.median import Median
from defend.errors import BadParameter
from defend.loading import load

# Bit depth


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_depth_has_that_many_levels_and_moves_pixels_by_half_a_step(bits):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    y = BitDepth(bits=bits).purified(x)
    assert len(y.unique()) == 2**bits
    assert (y - x).abs().max() <= 0.5 / (2**bits - 1) + 1e-6


def test_eight_bits_leave_an_image_of_eight_bits_unchanged():
    photo = PHOTOS[0][None]
    assert torch.equal(BitDepth(bits=8).purified(photo), photo)


# Gaussian noise


def test_gaussian_noise_has_its_sigma():
    """Allow four standard errors of the mean and of the standard deviation."""
    grey = torch.full((64, 1, 32, 32), 0.5)
    difference = GaussianNoise(sigma=0.05).purified(grey, noise(64)) - grey
    standard_error = 0.05 / 256
    assert abs(difference.mean()) < 4 * standard_error
    assert abs(difference.std() - 0.05) < 4 * standard_error / 2**0.5


# Median


def scipy_median(x, size):
    """Return scipy's median of each channel, with the image mirrored at its edge."""
    return median_filter(x.numpy(), size=(1, 1, size, size), mode="reflect")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(20, 17), (3, 2), (1, 1)])
def test_median_equals_scipy(size, shape):
    x = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(size))
    assert np.array_equal(Median(size=size).purified(x), scipy_median(x, size))


def test_median_of_a_photograph_equals_scipy():
    """A photograph has many equal values in a window."""
    x = crops(64, 96)
    assert np.array_equal(Median(size=3).purified(x), scipy_median(x, 3))


def test_median_sends_the_gradient_to_the_pixel_that_is_the_median():
    x = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output_gradient = torch.zeros_like(x)
    output_gradient[0, 0, 4, 4] = 1
    window = x[0, 0, 3:6, 3:6]
    expected = torch.zeros_like(x)
    expected[0, 0, 3:6, 3:6] = (window == window.median()).double()
    assert torch.equal(purifier_gradient(Median(size=3), x, output_gradient), expected)


def test_median_shares_the_gradient_among_equal_pixels():
    """In the window around (4, 4), three pixels are above the median and six are equal to it."""
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 3, 3:6] = 1
    output_gradient = torch.zeros_like(x)
    output_gradient[0, 0, 4, 4] = 6
    expected = torch.zeros_like(x)
    expected[0, 0, 4:6, 3:6] = 1
    assert torch.allclose(purifier_gradient(Median(size=3), x, output_gradient), expected)


def test_median_gradient_keeps_its_sum_where_all_pixels_are_equal():
    x = torch.full((2, 3, 8, 8), 0.5)
    gradient = purifier_gradient(Median(size=5), x, torch.ones_like(x))
    assert torch.allclose(gradient.sum((2, 3)), torch.full((2, 3), 64.0))


def test_median_does_not_depend_on_its_workspace(monkeypatch):
    x = crops(24, 24)
    together = Median(size=3).purified(x)
    monkeypatch.setattr(median, "WORKSPACE", 1)
    assert torch.equal(Median(size=3).purified(x), together)


# Fields out of range

OUT_OF_RANGE = [
    ("bitdepth", "bits=0"),
    ("bitdepth", "bits=9"),
    ("gaussian", "sigma=-1"),
    ("median", "size=0"),
    ("median", "size=16"),
    ("jpeg", "quality=0"),
    ("jpeg", "quality=101"),
    ("jpeg", 'subsampling="4:1:1"'),
    ("tvm", "weight=0"),
    ("tvm", "keep=0"),
    ("tvm", "keep=2"),
    ("tvm", "steps=0"),
]


@pytest.mark.parametrize(("name", "field"), OUT_OF_RANGE)
def test_a_field_out_of_range_is_named(name, field):
    with pytest.raises(BadParameter, match=field.partition("=")[0]):
        load(f"{name}:{field}")
