"""ComDefend: its networks, its threshold, its noise, its tiles, and the authors' checkpoint."""

import itertools
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from source_files import REPOSITORY

from defend.defenses.comdefend import ComDefend, bits, scaled
from defend.defenses.comdefend_recipe import ComDefendRecipe
from defend.defenses.tiles import over_tiles
from defend.errors import BadParameter, BadWeights
from defend.loading import load
from defend.noise import Noise

SLIM = {"weights": "untrained", "width": 32}
CONVERTER = REPOSITORY / "docs" / "import_comdefend.py"


def images(n=3, size=16, channels=3, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def streams(n=3):
    return Noise.of(5, torch.arange(n))


@pytest.mark.parametrize(
    ("channels", "code_maps", "parameters"), [(3, 12, 783_372 + 783_363), (1, 4, 813_220 + 813_217)]
)
def test_the_networks_have_the_published_numbers_of_parameters(channels, code_maps, parameters):
    """The colour networks have those of the authors' log; the grey ones those of their widths."""
    purifier = ComDefend(weights="untrained", channels=channels, code_maps=code_maps)
    assert sum(p.numel() for p in purifier.net.parameters()) == parameters


def test_a_slim_network_keeps_the_proportions():
    assert scaled((16, 256, 64), 64) == [4, 64, 16]


def test_it_is_the_decoder_of_the_signs_of_the_encoder():
    purifier, x = ComDefend(**SLIM), images()
    code = (purifier.net.encode(x) > 0).float()
    assert set(code.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(purifier.purified(x), purifier.net.decode(code))
    assert torch.equal(purifier.binary_maps(x, streams()), code)


def test_noise_moves_the_threshold_by_phi_times_a_normal_number():
    purifier, x = ComDefend(**SLIM, noise=0.01), images()
    c = purifier.net.encode(x)
    n = streams().normal(c)
    expected = purifier.net.decode((c > 0.01 * n).float())
    assert torch.equal(purifier.purified(x, streams()), expected)
    assert not torch.equal(expected, purifier.net.decode(bits(c)))


@pytest.mark.parametrize(("noise", "stochastic"), [(0, False), (20, True)])
def test_the_card_says_whether_noise_is_drawn(noise, stochastic):
    assert ComDefend(**SLIM, noise=noise).card.stochastic is stochastic


def test_the_gradient_is_straight_through_the_threshold():
    purifier, x = ComDefend(**SLIM), images().requires_grad_()
    weights = images(seed=1)
    gradient = torch.autograd.grad((purifier.purified(x) * weights).sum(), x)[0]
    c = purifier.net.encode(x)
    code = bits(c.detach()).requires_grad_()
    of_code = torch.autograd.grad((purifier.net.decode(code) * weights).sum(), code)[0]
    expected = torch.autograd.grad((c * of_code).sum(), x)[0]
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_relaxed_gradient_is_that_of_the_sigmoid(temperature):
    """The derivative of b with respect to c is s (1 - s) / (T mean |c|), and the value is hard."""
    purifier, x = ComDefend(**SLIM), images().requires_grad_()
    weights = images(seed=1)
    y = purifier.relaxed(x, streams(), temperature)
    assert torch.equal(y, purifier.purify(x, streams()))
    gradient = torch.autograd.grad((y * weights).sum(), x)[0]
    c = purifier.net.encode(x)
    code = bits(c.detach()).requires_grad_()
    of_code = torch.autograd.grad((purifier.net.decode(code) * weights).sum(), code)[0]
    scale = temperature * c.detach().abs().mean((1, 2, 3), keepdim=True)
    s = torch.sigmoid(c.detach() / scale)
    expected = torch.autograd.grad((c * of_code * s * (1 - s) / scale).sum(), x)[0]
    torch.testing.assert_close(gradient, expected)


def test_the_relaxed_gradient_is_finite_where_every_margin_is_zero():
    purifier, x = ComDefend(**SLIM), images().requires_grad_()
    last = [m for m in purifier.net.com.modules() if list(m.parameters(recurse=False))][-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()
    assert not purifier.net.encode(x).any()
    y = purifier.relaxed(x, streams(), 0.3)
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"code_maps": 0}, "code_maps=0"),
        ({"width": 8}, "width=8"),
        ({"channels": 2}, "channels=2"),
        ({"noise": -1.0}, "noise=-1"),
        ({"patch": -1}, "patch=-1"),
        ({"patch": 8, "overlap": 5}, "overlap=5"),
        ({"overlap": 1}, "overlap=1"),
    ],
)
def test_a_field_out_of_its_range_is_refused(fields, message):
    with pytest.raises(BadParameter, match=message):
        ComDefend(**SLIM | fields)


@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (19, 33), (5, 7)])
@pytest.mark.parametrize("overlap", [0, 2, 4])
def test_tiles_that_are_left_alone_give_the_image_back(shape, overlap):
    x = torch.rand(2, 3, *shape, dtype=torch.float64)
    torch.testing.assert_close(over_tiles(lambda tiles: tiles, x, 8, overlap), x)


def test_tiles_without_overlap_are_purified_one_by_one():
    x = torch.arange(2 * 16 * 16, dtype=torch.float64).view(2, 1, 16, 16)
    means = over_tiles(lambda t: t.mean((2, 3), keepdim=True).expand_as(t), x, 8)
    assert torch.equal(means[1, 0, :8, 8:], x[1, 0, :8, 8:].mean().expand(8, 8))


def test_blended_tiles_have_no_seam():
    """Tiles of constant, random brightness: with overlap no step is as large as without."""
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)

    def random_brightness(tiles):
        generator = torch.Generator().manual_seed(0)
        levels = torch.rand(len(tiles), 1, 1, 1, dtype=torch.float64, generator=generator)
        return levels.expand_as(tiles)

    steps = [over_tiles(random_brightness, x, 16, o).diff(dim=3).abs().max() for o in (0, 8)]
    assert steps[1] < steps[0] / 4


def test_patches_are_the_published_way_for_large_images():
    purifier, x = ComDefend(**SLIM, patch=8), images(2, 16)
    whole = ComDefend(**SLIM)
    whole.net.load_state_dict(purifier.net.state_dict())
    tile = whole.purified(x[:, :, 8:, :8])
    torch.testing.assert_close(purifier.purified(x)[:, :, 8:, :8], tile)
    assert not torch.allclose(whole.purified(x)[:, :, 8:, :8], tile)


COM = (3, 16, 32, 64, 128, 256, 128, 64, 32, 12)
REC = (12, 32, 64, 128, 256, 128, 64, 32, 16, 3)


def authors_arrays(widths, seed):
    """Return kernels (h, w, in, out) and biases by turns."""
    generator = np.random.default_rng(seed)
    arrays = []
    for fan_in, fan_out in itertools.pairwise(widths):
        arrays.append(generator.normal(0, 0.2 / fan_in**0.5, (3, 3, fan_in, fan_out)))
        arrays.append(generator.normal(0, 0.1, fan_out))
    return arrays


def apply_arrays(arrays, x):
    """Return what the authors' program computes with its arrays, without the last sigmoid."""
    for i in range(0, len(arrays), 2):
        kernel = torch.from_numpy(arrays[i]).permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, torch.from_numpy(arrays[i + 1]), padding=1)
        x = F.elu(x) if i < len(arrays) - 2 else x
    return x


def test_the_authors_checkpoint_is_converted(tmp_path):
    com, rec = authors_arrays(COM, 0), authors_arrays(REC, 1)
    np.savez(tmp_path / "enc.npz", *com)
    np.savez(tmp_path / "dec.npz", *rec)
    out = tmp_path / "authors.safetensors"
    command = [sys.executable, str(CONVERTER), "enc.npz", "dec.npz", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    purifier, x = ComDefend(weights=str(out)), images()
    c = apply_arrays(com, x.double() - 0.5)
    margin_is_clear = c.abs() > 1e-4
    assert margin_is_clear.double().mean() > 0.99
    assert torch.equal((purifier.net.encode(x) > 0)[margin_is_clear], (c > 0)[margin_is_clear])
    code = (purifier.net.encode(x) > 0).double()
    expected = torch.sigmoid(apply_arrays(rec, code)).float()
    torch.testing.assert_close(purifier.purified(x), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("broken", ["swapped", "few", "pickle", "absent"])
def test_wrong_arrays_are_refused_in_one_line(tmp_path, broken):
    convert = runpy.run_path(str(CONVERTER))["convert"]
    com, rec = authors_arrays(COM, 0), authors_arrays(REC, 1)
    files = {"swapped": (rec, com), "few": (com[:-2], rec), "pickle": (com, [com[0], [None]])}
    for name, arrays in zip(("enc", "dec"), files.get(broken, (com, rec)), strict=True):
        if broken == "absent":
            continue
        values = [np.array(a, dtype=object) if isinstance(a, list) else a for a in arrays]
        np.savez(tmp_path / f"{name}.npz", *values)
    with pytest.raises(BadWeights) as e:
        convert(tmp_path / "enc.npz", tmp_path / "dec.npz", tmp_path / "out.safetensors")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out.safetensors").exists()


# Training.

TINY = {"weights": "untrained", "width": 16, "code_maps": 2, "channels": 1}
QUICK = {"precision": "float32", "layout": "contiguous", "progress": False}


@pytest.fixture(scope="module")
def digits():
    return load("digits", "dataset").rows("train", 0, 256)


@pytest.mark.parametrize(
    ("options", "trained_on"),
    [
        ({}, "clean"),
        ({"recipe": "denoise", "amplitude": 0.2}, "corrupted(Linf 0.2)"),
        (
            {"recipe": "denoise", "amplitude": 0.2, "against": "convnet:weights=convnet-digits"},
            "adversarial(fgsm-2, Linf 0.2, convnet-digits)",
        ),
    ],
)
def test_recipes_learn_to_reconstruct(digits, options, trained_on):
    """The error falls below that of the mean image, which a code of constants could reach."""
    x, y = digits
    purifier = ComDefend(**TINY, dataset="digits")
    purifier.fit(x, y, val=(x[:32], y[:32]), epochs=10, lr=1e-2, code_noise=2.0, **QUICK, **options)
    error_of_mean = (x.mean(0) - x).square().mean()
    assert (purifier.purified(x) - x).square().mean() < 0.8 * error_of_mean
    assert str(purifier.trained_on[0]) == trained_on


def test_the_papers_loss_is_the_squared_error_and_the_energy_of_the_code(digits):
    purifier, recipe = ComDefend(**TINY), ComDefendRecipe(energy=0.5)
    x, noise = digits[0][:4], streams(4)
    c = purifier.net.encode(x)
    code = torch.sigmoid(c - 20 * noise.fork("code").normal(c))
    expected = (purifier.net.decode(code) - x).square().mean() + 0.5 * code.square().mean()
    loss = recipe.loss(recipe.trainee(purifier), x, digits[1][:4], noise)
    torch.testing.assert_close(loss, expected)


def test_a_denoiser_sees_each_third_in_its_own_way(digits):
    purifier = ComDefend(**TINY, dataset="digits")
    recipe = ComDefendRecipe(recipe="denoise", against="convnet:weights=convnet-digits")
    net, (x, y) = recipe.trainee(purifier), (t[:30] for t in digits)
    change = (recipe._perturb(net, x, y, streams(30)) - x).abs().amax((1, 2, 3))
    assert not change[0::3].any()
    assert change[1::3].min() > 0
    assert change[2::3].min() > 0
    assert change.max() <= recipe.amplitude + 1e-6
