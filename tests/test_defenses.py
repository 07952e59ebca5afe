"""The baseline defenses against their definitions: other implementations, closed forms, invariances."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import median_filter
from scipy.optimize import minimize as scipy_minimize
from sklearn.datasets import load_sample_images

from defend.defenses import jpeg, median, tvm
from defend.defenses.art import ArtPreprocessor, own_generators
from defend.defenses.bitdepth import BitDepth
from defend.defenses.gaussian import GaussianNoise
from defend.defenses.jpeg import Jpeg
from defend.defenses.median import Median
from defend.defenses.tvm import TotalVariation
from defend.errors import BadParameter
from defend.loading import load
from defend.noise import Noise

PHOTOS = [
    torch.tensor(image).permute(2, 0, 1) / 255 for image in load_sample_images().images
]  # 427 x 640


def crops(h, w):
    return torch.stack([photo[:, 100 : 100 + h, 200 : 200 + w] for photo in PHOTOS])


def noise(n, seed=0):
    return Noise.of(seed, torch.arange(n))


def grads(p, x, g, **kw):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((p.purified(x, noise(len(x)), **kw) * g).sum(), x)[0]


# Bit depth


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_depth_has_that_many_levels_and_moves_by_half_a_step(bits):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    y = BitDepth(bits=bits).purified(x)
    assert len(y.unique()) == 2**bits
    assert (y - x).abs().max() <= 0.5 / (2**bits - 1) + 1e-6
    assert torch.equal(
        BitDepth(bits=8).purified(PHOTOS[0][None]), PHOTOS[0][None]
    )  # what has 8 bits keeps them


# Gaussian noise


def test_gaussian_noise_has_its_sigma():
    grey = torch.full((64, 1, 32, 32), 0.5)
    d = GaussianNoise(sigma=0.05).purified(grey, noise(64)) - grey
    assert (
        abs(d.mean()) < 4 * 0.05 / 256 and abs(d.std() - 0.05) < 4 * 0.05 / 256 / 2**0.5
    )  # four standard errors


# Median


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(20, 17), (3, 2), (1, 1)])
def test_median_is_scipys(size, shape):
    x = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(size))
    assert np.array_equal(
        Median(size=size).purified(x),
        median_filter(x.numpy(), size=(1, 1, size, size), mode="reflect"),
    )


def test_median_of_a_photograph_is_scipys():
    x = crops(64, 96)  # many equal values
    assert np.array_equal(
        Median(size=3).purified(x), median_filter(x.numpy(), size=(1, 1, 3, 3), mode="reflect")
    )


def test_median_gives_a_pixels_gradient_to_the_median():
    x = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = torch.zeros_like(x)
    g[0, 0, 4, 4] = 1
    window = x[0, 0, 3:6, 3:6]
    want = torch.zeros_like(x)
    want[0, 0, 3:6, 3:6] = (window == window.median()).double()
    assert torch.equal(grads(Median(size=3), x, g), want)


def test_median_shares_the_gradient_of_ties():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 3, 3:6] = (
        1  # above the median of the window around 4, 4; the other six pixels are the median alike
    )
    g = torch.zeros_like(x)
    g[0, 0, 4, 4] = 6
    want = torch.zeros_like(x)
    want[0, 0, 4:6, 3:6] = 1
    assert torch.allclose(grads(Median(size=3), x, g), want)


def test_median_gradient_adds_up_where_everything_is_tied():
    x = torch.full((2, 3, 8, 8), 0.5)
    assert torch.allclose(
        grads(Median(size=5), x, torch.ones_like(x)).sum((2, 3)), torch.full((2, 3), 64.0)
    )


def test_median_does_not_depend_on_its_workspace(monkeypatch):
    x = crops(24, 24)
    whole = Median(size=3).purified(x)
    monkeypatch.setattr(median, "WORKSPACE", 1)
    assert torch.equal(Median(size=3).purified(x), whole)


# JPEG


def pillow(x, **how):
    """(b, c, h, w) through a real encoder and decoder, in grey levels."""
    out = []
    for image in (x * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(file, "jpeg", **how)
        out.append(torch.tensor(np.atleast_3d(np.asarray(Image.open(file)))).permute(2, 0, 1))
    return torch.stack(out)


def apart(x, quality, subsampling="4:2:0"):
    """Grey levels between ours and Pillow's."""
    how = {"subsampling": subsampling} if x.shape[1] == 3 else {}
    ours = Jpeg(quality=quality, subsampling=subsampling).purified(x) * 255
    return (ours - pillow(x, quality=quality, **how)).abs()


def assert_pillows(d):
    assert (d < 2).float().mean() >= 0.99, (
        f"{(d >= 2).float().mean():.4f} of the pixels are two levels or more away"
    )
    assert (d < 0.5).float().mean() >= 0.99, (
        f"{(d >= 0.5).float().mean():.4f} of the pixels differ"
    )  # not by luck: the arithmetic is libjpeg's


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [5, 20, 50, 75, 90, 100])
def test_jpeg_is_pillows(quality, subsampling):
    assert_pillows(apart(torch.stack(PHOTOS), quality, subsampling))


@pytest.mark.parametrize(
    "shape", [(32, 32), (28, 28), (33, 47), (17, 8), (16, 24), (7, 9), (5, 3), (1, 1)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows_at_odd_sizes(shape, channels):
    for quality in (30, 75, 95):
        assert_pillows(apart(crops(*shape)[:, :channels], quality))


@pytest.mark.data("kodak")
def test_jpeg_is_pillows_on_kodak(data_root):
    files = sorted(
        p for p in (data_root / "kodak").rglob("*") if p.suffix.lower() in (".png", ".bmp", ".webp")
    )[:4]
    for path in files:
        x = torch.tensor(np.asarray(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255
        assert_pillows(apart(x, 75))
    assert files


@pytest.mark.data("cifar-10-batches-py")
def test_jpeg_is_pillows_on_cifar(data_root):
    x, _ = load("cifar10", "dataset", root=str(data_root)).rows("test", 0, 200)
    for quality in (25, 75):
        assert_pillows(apart(x, quality))


def test_jpeg_rounds_pixels_and_does_not_truncate_them():
    x = torch.full((1, 1, 8, 8), 100.9 / 255)
    assert torch.equal(Jpeg(quality=100).purified(x), torch.full((1, 1, 8, 8), 101 / 255))


WHOLE = {
    "black": torch.zeros(1, 3, 16, 16),
    "white": torch.ones(1, 3, 16, 16),
    "compressed before": Jpeg().purified(crops(16, 16)),
}


@pytest.mark.parametrize("x", WHOLE.values(), ids=WHOLE)
def test_jpeg_has_a_gradient_where_every_coefficient_is_a_whole_number(x):
    g = grads(Jpeg(), x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    assert (g.flatten(1).abs().sum(1) > 0).all()


def test_jpeg_quantises_away_from_zero_with_a_smooth_slope():
    z = torch.tensor([-2.5, -0.5, 0.0, 0.2, 0.5, 0.9, 1.0], requires_grad=True)
    r = jpeg.quantised(z)
    assert r.tolist() == [-3, -1, 0, 0, 1, 1, 1]
    r.sum().backward()
    assert torch.allclose(z.grad, torch.tensor([0.8, 0.8, 0.05, 0.17, 0.8, 0.08, 0.05]))


# Total variation


def tiny():
    x = crops(6, 7)[:1, :1].double()
    return x, (noise(1).uniform(x) < 0.6).double()


def test_total_variation_falls_at_every_step():
    x = crops(32, 32)
    mask = (noise(2).uniform(x) < 0.5).float()
    values = torch.stack(
        [tvm.objective(tvm.minimise(x, mask, 0.05, steps), x, mask, 0.05) for steps in range(12)]
    )
    assert (values.diff(dim=0) <= 1e-6 * values[:-1]).all()
    assert (values[-1] < 0.8 * values[0]).all() and (
        values[-2] - values[-1] < 1e-3 * values[-1]
    ).all()  # and arrives


def test_total_variation_is_scipys():
    x, mask = tiny()

    def value(z):
        return tvm.objective(torch.tensor(z).view_as(x), x, mask, 0.05).item()

    found = scipy_minimize(
        value, tvm.first_guess(x, mask).flatten().numpy(), method="BFGS", options={"gtol": 1e-7}
    )
    ours = tvm.minimise(x, mask, 0.05, 300)
    assert abs(value(ours.flatten().numpy()) - found.fun) < 1e-6 * found.fun
    assert np.abs(ours.flatten().numpy() - found.x).max() < 1e-3


def test_total_variation_gradient_is_that_of_the_minimiser():
    x, mask = tiny()
    g, d = (
        torch.randn(x.shape, generator=torch.Generator().manual_seed(s), dtype=x.dtype)
        for s in (0, 1)
    )
    z = x.clone().requires_grad_()
    tvm._Minimiser.apply(z, mask, 0.05, 300).backward(g)
    h = 1e-5
    slope = (
        (tvm.minimise(x + h * d, mask, 0.05, 300) - tvm.minimise(x - h * d, mask, 0.05, 300)) * g
    ).sum() / (2 * h)
    assert abs(slope - (z.grad * d).sum()) < 1e-3 * abs(slope)
    assert (z.grad[mask == 0] == 0).all()


def test_total_variation_is_the_same_in_blocks_and_at_once(monkeypatch):
    x = torch.cat([crops(32, 32), crops(32, 32).flip(3)])
    mask, solved = (noise(len(x)).uniform(x) < 0.5).float(), []
    for block in (1, 2 * x[0].numel(), x.numel()):
        monkeypatch.setattr(tvm, "BLOCK", block)
        z = x.clone().requires_grad_()
        out = tvm._Minimiser.apply(z, mask, 0.05, 3)
        out.backward(x.flip(0))
        solved.append(torch.stack([out.detach(), z.grad]))
    assert (
        len(x) > 2
        and torch.allclose(solved[0], solved[2], atol=1e-6)
        and torch.allclose(solved[1], solved[2], atol=1e-6)
    )


@pytest.mark.parametrize("shade", [0.0, 0.3, 1.0])
def test_total_variation_leaves_a_constant_image(shade):
    x = torch.full((2, 3, 16, 16), shade)
    assert torch.allclose(TotalVariation().purified(x, noise(2)), x, atol=1e-6)


def test_total_variation_never_sees_dropped_pixels():
    x, p = crops(16, 16), TotalVariation(keep=0.5)
    dropped = noise(2).uniform(x) >= 0.5
    assert torch.equal(
        p.purified(x, noise(2)), p.purified(torch.where(dropped, 1 - x, x), noise(2))
    )


def test_total_variation_denoises():
    x = crops(64, 64)
    noisy = (x + 0.1 * noise(2).fork("test").normal(x)).clamp(0, 1)
    cleaned = TotalVariation(keep=1, weight=0.05).purified(noisy, noise(2))
    left = (cleaned - x).square().mean((1, 2, 3)) / (noisy - x).square().mean((1, 2, 3))
    assert left[0] < 0.8 and left[1] < 0.25  # a temple full of detail, a flower before a blur


def test_all_pixels_kept_is_deterministic():
    assert (
        not TotalVariation(keep=1).card.stochastic
        and TotalVariation(keep=0.9).card.stochastic
        and TotalVariation.card.stochastic
    )


# ART's own


def test_art_feature_squeezing_is_bit_depth_reduction():
    x = crops(16, 16)
    y = load("art:name=FeatureSqueezing,bit_depth=3").purified(x)
    assert y.dtype == torch.float32 and torch.allclose(y, BitDepth(bits=3).purified(x))


def test_art_spatial_smoothing_is_the_median_filter():
    x = crops(16, 24)
    for size in (2, 3):
        assert torch.equal(
            load(f"art:name=SpatialSmoothing,window_size={size}").purified(x),
            Median(size=size).purified(x),
        )


def test_art_jpeg_truncates_where_ours_rounds():
    x = crops(32, 32) + 0.4 / 255  # 0.4 of a level up: nothing that rounding would see
    theirs = load("art:name=JpegCompression,quality=75").purified(x)
    assert (theirs - Jpeg(quality=75).purified(x)).abs().max() <= 1 / 255 + 1e-6
    assert torch.allclose(
        load("art:name=JpegCompression,quality=75").purified(x + 0.5 / 255),
        Jpeg(quality=75).purified(x),
        atol=1e-6,
    )


def test_art_total_variation_gets_its_own_layout():
    """It takes no channels_first, and would minimise over colours and rows: an image of equal rows and columns tells."""
    flat = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1).expand(2, 3, 12, 12).contiguous()
    y = load("art:name=TotalVarMin,stochastic=true").purified(flat, noise(2))
    assert torch.allclose(y, flat, atol=1e-3)


def test_art_noise_belongs_to_the_image():
    p = load("art:name=GaussianAugmentation,sigma=0.05,stochastic=true")
    x = crops(16, 16).repeat(3, 1, 1, 1)
    whole = p.purified(x, noise(6))
    assert torch.equal(p.purified(x[4:], noise(6).take(slice(4, 6))), whole[4:])
    assert not torch.equal(whole[0], whole[2])  # the same photograph, another image
    assert abs((whole - x).std() - 0.05) < 0.005


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_art_generators_are_put_back_after_an_error():
    before = states()

    def fails():
        with own_generators(3, torch.device("cpu")):
            assert states() != before
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert states() == before


REFUSED = {
    "art": "missing a required argument: 'name'",
    "art:name=SpatialSmothing": "no preprocessor 'SpatialSmothing'. Did you mean SpatialSmoothing",
    "art:name=CutoutTensorFlowV2": "written for TensorFlow",
    "art:name=SpatialSmoothing,window=3": "no parameter 'window' of its own. Did you mean window_size",
    "art:name=SpatialSmoothing,window_size=0": "Sliding window size must be a positive integer",
    "art:name=SpatialSmoothing,stochastic=true": "say stochastic=false",
    "art:name=SpatialSmoothing,stochastic=perhaps": "expected true or false",
    "art:name=GaussianAugmentation": "say stochastic=true",
    "art:name=LabelSmoothing": "without labels",
    "art:name=CutMix,num_classes=10": "without labels",
    "art:name=ThermometerEncoding": r"into \(2, 30, 32, 32\)",
    "art:name=VideoCompression,video_format=avi,constant_rate_factor=20": "without labels: Video",
    "art:name=Mp3Compression": "needs sample_rate: write art:name=Mp3Compression,sample_rate=",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_art_refuses_in_one_line(spec):
    with pytest.raises(BadParameter, match=REFUSED[spec]) as e:
        load(spec)
    assert "\n" not in str(e.value)


def test_art_settings_rebuild_it_through_the_factory_too():
    p = load("art:name=GaussianAugmentation,sigma=1/20,stochastic=true", max_batch=7)
    assert (
        p.settings
        == {"name": "GaussianAugmentation", "stochastic": True, "parameters": {"sigma": 0.05}}
        and p.max_batch == 7
    )
    again = ArtPreprocessor(p.name, p.stochastic, **p.parameters)
    x = crops(8, 8)
    assert torch.equal(again.purified(x, noise(2)), p.purified(x, noise(2)))


# What cannot work is refused


OUT_OF_RANGE = {
    "bitdepth": ["bits=0", "bits=9"],
    "gaussian": ["sigma=-1"],
    "median": ["size=0", "size=16"],
    "jpeg": ["quality=0", "quality=101", 'subsampling="4:1:1"'],
    "tvm": ["weight=0", "keep=0", "keep=2", "steps=0"],
}


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, fields in OUT_OF_RANGE.items() for field in fields]
)
def test_a_field_out_of_range_is_named(name, field):
    with pytest.raises(BadParameter, match=field.partition("=")[0]):
        load(f"{name}:{field}")
