"""ART's preprocessors: equal to ours where both exist, reproducible, and refused with a reason."""

import random

import numpy as np
import pytest
import torch
from photographs import crops, noise

from defend.defenses.art import ArtPreprocessor, seeded_generators
from defend.defenses.bitdepth import BitDepth
from defend.defenses.jpeg import Jpeg
from defend.defenses.median import Median
from defend.errors import BadParameter
from defend.loading import load


def test_feature_squeezing_equals_bit_depth_reduction():
    x = crops(16, 16)
    y = load("art:name=FeatureSqueezing,bit_depth=3").purified(x)
    assert y.dtype == torch.float32
    assert torch.allclose(y, BitDepth(bits=3).purified(x))


@pytest.mark.parametrize("size", [2, 3])
def test_spatial_smoothing_equals_the_median_filter(size):
    x = crops(16, 24)
    smoothed = load(f"art:name=SpatialSmoothing,window_size={size}").purified(x)
    assert torch.equal(smoothed, Median(size=size).purified(x))


def test_art_truncates_pixels_before_jpeg_and_ours_rounds_them():
    """0.4 of a level above the image, rounding changes nothing."""
    x = crops(32, 32) + 0.4 / 255
    purifier, expected = load("art:name=JpegCompression,quality=75"), Jpeg(quality=75).purified(x)
    assert (purifier.purified(x) - expected).abs().max() <= 1 / 255 + 1e-6
    assert torch.allclose(purifier.purified(x + 0.5 / 255), expected, atol=1e-6)


def test_total_variation_gets_its_own_layout():
    """It has no channels_first, and in our layout would minimise over colours and rows.

    An image with equal rows and columns shows the difference.
    """
    colours = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1)
    flat = colours.expand(2, 3, 12, 12).contiguous()
    y = load("art:name=TotalVarMin,stochastic=true").purified(flat, noise(2))
    assert torch.allclose(y, flat, atol=1e-3)


def test_noise_belongs_to_the_image():
    """Images 0 and 2 are the same photograph with different numbers, so their noise differs."""
    purifier = load("art:name=GaussianAugmentation,sigma=0.05,stochastic=true")
    x = crops(16, 16).repeat(3, 1, 1, 1)
    purified = purifier.purified(x, noise(6))
    assert torch.equal(purifier.purified(x[4:], noise(6).take(slice(4, 6))), purified[4:])
    assert not torch.equal(purified[0], purified[2])
    assert abs((purified - x).std() - 0.05) < 0.005


def generator_states():
    """Return the states of the global generators of torch, numpy and random."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_generators_are_restored_after_an_error():
    before = generator_states()

    def fail_inside():
        with seeded_generators(3, torch.device("cpu")):
            assert generator_states() != before
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert generator_states() == before


REFUSED = {
    "art": "missing a required argument: 'name'",
    "art:name=SpatialSmothing": "'SpatialSmothing'. Did you mean SpatialSmoothing",
    "art:name=CutoutTensorFlowV2": "written for TensorFlow",
    "art:name=SpatialSmoothing,window=3": "'window' .*Did you mean window_size",
    "art:name=SpatialSmoothing,window_size=0": "Sliding window size must be a positive integer",
    "art:name=SpatialSmoothing,stochastic=true": "write stochastic=false",
    "art:name=SpatialSmoothing,stochastic=perhaps": "expected true or false",
    "art:name=GaussianAugmentation": "write stochastic=true",
    "art:name=LabelSmoothing": "without labels",
    "art:name=CutMix,num_classes=10": "without labels",
    "art:name=ThermometerEncoding": r"got \(2, 30, 32, 32\)",
    "art:name=VideoCompression,video_format=avi,constant_rate_factor=20": "without labels: Video",
    "art:name=Mp3Compression": "needs sample_rate: write art:name=Mp3Compression,sample_rate=",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_a_preprocessor_that_cannot_work_is_refused_in_one_line(spec):
    with pytest.raises(BadParameter, match=REFUSED[spec]) as e:
        load(spec)
    assert "\n" not in str(e.value)


def test_settings_rebuild_the_purifier_through_the_factory():
    purifier = load("art:name=GaussianAugmentation,sigma=1/20,stochastic=true", max_batch=7)
    assert purifier.settings == {
        "name": "GaussianAugmentation",
        "stochastic": True,
        "parameters": {"sigma": 0.05},
    }
    assert purifier.max_batch == 7
    rebuilt = ArtPreprocessor(purifier.name, purifier.stochastic, **purifier.parameters)
    x = crops(8, 8)
    assert torch.equal(rebuilt.purified(x, noise(2)), purifier.purified(x, noise(2)))
