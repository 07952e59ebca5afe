"""The learned codec: its rate, its padding, its views, its gradients, and what it refuses."""

import math
import runpy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from source_files import REPOSITORY

from defend.defenses.codec_views import (
    VIEWS,
    code_best_view,
    crop_padding,
    pad_to_multiple,
    undo_view,
    view,
)
from defend.defenses.robust_codec import RobustCodec
from defend.defenses.sizes import resize
from defend.defenses.small_codec import LEAK, STEPS, SmallCodec, clamp_with_leak
from defend.errors import BadParameter, BadWeights, Mismatch
from defend.loading import load
from defend.noise import Noise

SLIM = {"weights": "untrained", "width": 8, "deep_width": 16, "latents": 4, "blocks": 1}
CONVERTER = runpy.run_path(str(REPOSITORY / "docs" / "import_codec.py"))
SIZES = [(16, 16), (13, 10), (1, 1), (2, 3), (1, 30), (5, 64)]


def images(height=16, width=16, n=3, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, height, width, generator=generator)


def lively(**fields):
    """Return an untrained codec whose latents are spread over several steps."""
    purifier = RobustCodec(**SLIM | fields)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in purifier.net.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    return purifier


def streams(n=3):
    return Noise.of(5, torch.arange(n))


# The rate, against closed forms.


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 4.0])
def test_latents_of_zero_cost_what_the_logistic_density_says(scale):
    """P(0) = S(1 / 2s) - S(-1 / 2s) = tanh(1 / 4s), for each latent."""
    purifier = RobustCodec(**SLIM)
    with torch.no_grad():
        purifier.net.log_scale.fill_(math.log(scale))
        purifier.net.g_a[-1].weight.zero_()
        purifier.net.g_a[-1].bias.zero_()
    latents_per_pixel = 4 / 4**2
    expected = -math.log2(math.tanh(1 / (4 * scale))) * latents_per_pixel
    torch.testing.assert_close(purifier.rate(images()), torch.full((3,), expected))


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_the_probabilities_of_all_latents_add_up_to_one(scale):
    codec = SmallCodec(1, 8, 8, 1, 1, 1, False)
    with torch.no_grad():
        codec.log_scale.fill_(math.log(scale))
    values = torch.arange(-60.0, 61.0)
    probabilities = 2 ** -codec.bits(values.view(-1, 1, 1, 1)).detach()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(probabilities, probabilities.flip(0))
    assert (probabilities[:60].diff() > -1e-12).all(), "it rises up to 0"


def test_the_rate_is_for_each_pixel_of_the_image_and_not_of_its_padding():
    purifier, x = lively(), images(13, 10)
    padded = pad_to_multiple(x, 4)
    ratio = padded[0, 0].numel() / x[0, 0].numel()
    torch.testing.assert_close(purifier.rate(x), ratio * purifier.rate(padded))


def test_the_rate_of_a_coarse_image_is_that_of_what_is_coded():
    x = images(32, 32)
    purifier = lively(resize=0.5)
    torch.testing.assert_close(purifier.rate(x), lively().rate(resize(x, 16, 16)) / 4)


# Padding.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_padding_reaches_the_multiple_and_is_cropped_again(size, multiple):
    x = images(*size)
    padded = pad_to_multiple(x, multiple)
    assert [side % multiple for side in padded.shape[2:]] == [0, 0]
    assert torch.equal(crop_padding(padded, *size, multiple), x)


def test_padding_is_reflection_where_torch_can_do_it():
    x = images(13, 10)
    assert torch.equal(pad_to_multiple(x, 8), F.pad(x, (3, 3, 1, 2), mode="reflect"))


def test_small_images_are_reflected_again_and_again():
    x = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    assert pad_to_multiple(x, 8)[0, 0, 0].tolist() == [2, 1, 0, 1, 2, 1, 0, 1]


@pytest.mark.parametrize("size", SIZES)
def test_purifying_is_cropping_the_purified_padded_image(size):
    purifier, x = lively(), images(*size)
    expected = crop_padding(purifier.purified(pad_to_multiple(x, 4)), *size, 4)
    assert torch.equal(purifier.purified(x), expected)


# Views.


@pytest.mark.parametrize("number", range(VIEWS))
def test_each_view_is_undone(number):
    x = images(5, 9)
    assert torch.equal(undo_view(view(x, number), number), x)


def test_the_views_are_eight():
    square = torch.arange(9.0).view(1, 1, 3, 3)
    assert len({tuple(view(square, k).flatten().tolist()) for k in range(VIEWS)}) == VIEWS


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_the_self_ensemble_commutes_with_flips_and_rotations(size):
    """The eight views of a view are the eight views: the best of them is the same."""
    purifier, x = lively(self_ensemble=True), images(*size)
    expected, rate = purifier.purified(x), purifier.rate(x)
    for number in range(VIEWS):
        turned = view(x, number)
        torch.testing.assert_close(purifier.purified(turned), view(expected, number))
        torch.testing.assert_close(purifier.rate(turned), rate)
    assert not torch.allclose(lively().purified(view(x, 1)), view(lively().purified(x), 1))


def test_the_self_ensemble_has_the_smallest_error_of_all_views():
    purifier, x = lively(self_ensemble=True), images(n=8)
    plain = lively()
    errors = []
    for number in range(VIEWS):
        restored = undo_view(plain.purified(view(x, number)), number)
        errors.append((restored - x).square().mean((1, 2, 3)))
    best = torch.stack(errors).amin(0)
    torch.testing.assert_close((purifier.purified(x) - x).square().mean((1, 2, 3)), best)
    assert (torch.stack(errors).argmin(0) > 0).any()


def test_each_image_has_the_gradient_of_its_own_view():
    """A codec that keeps the left half: upright images choose another view than turned ones."""
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    bright = torch.cat([left, left.rot90(1, (2, 3))]).requires_grad_()
    result = code_best_view(lambda t: t * left, bright)
    assert torch.equal(result, bright)
    gradient = torch.autograd.grad(result.sum(), bright)[0]
    assert torch.equal(gradient, bright.detach())


# What is done before the codec, and how often it is run.


def test_fewer_levels_come_before_the_codec():
    x = images()
    rounded = (x * 7).round() / 7
    torch.testing.assert_close(lively(bit_depth=3).purified(x), lively().purified(rounded))


def test_a_smaller_size_comes_before_the_codec_and_is_undone():
    x = images(20, 30)
    small = lively().purified(resize(x, 10, 15))
    torch.testing.assert_close(lively(resize=0.5).purified(x), resize(small, 20, 30))


@pytest.mark.parametrize("times", [2, 3])
def test_coding_several_times_is_coding_what_was_coded(times):
    x = images()
    expected = x
    for _ in range(times):
        expected = lively().purified(expected)
    torch.testing.assert_close(lively(recompress=times).purified(x), expected)
    before_last = lively(recompress=times - 1).purified(x)
    torch.testing.assert_close(lively(recompress=times).rate(x), lively().rate(before_last))


# Gradients.


def decoded_gradient(purifier, y_hat, weights):
    """Return the gradient of the weighted reconstruction for the rounded latents."""
    y_hat = y_hat.detach().requires_grad_()
    restored = clamp_with_leak(purifier.net.decode(y_hat))
    return torch.autograd.grad((restored * weights).sum(), y_hat)[0]


def test_the_gradient_is_straight_through_the_rounding():
    purifier, x, weights = lively(), images().requires_grad_(), images(seed=1)
    gradient = torch.autograd.grad((purifier.purified(x) * weights).sum(), x)[0]
    y = purifier.net.encode(x)
    of_codes = decoded_gradient(purifier, y.round(), weights)
    torch.testing.assert_close(gradient, torch.autograd.grad((y * of_codes).sum(), x)[0])


@pytest.mark.parametrize("temperature", [0.1, 0.3, 1.0])
def test_the_relaxed_gradient_has_the_slope_of_the_staircase(temperature):
    """The derivative of tanh(r / T) / (2 tanh(1 / 2T)), and the value is rounded."""
    purifier, x, weights = lively(), images().requires_grad_(), images(seed=1)
    restored = purifier.relaxed(x, streams(), temperature)
    assert torch.equal(restored, purifier.purify(x, streams()))
    gradient = torch.autograd.grad((restored * weights).sum(), x)[0]
    y = purifier.net.encode(x)
    r = (y - y.floor() - 0.5).detach()
    slope = (1 - torch.tanh(r / temperature) ** 2) / (
        2 * temperature * math.tanh(0.5 / temperature)
    )
    of_codes = decoded_gradient(purifier, y.round(), weights) * slope
    expected = torch.autograd.grad((y * of_codes).sum(), x)[0]
    torch.testing.assert_close(gradient, expected)


def test_the_clamp_has_a_small_slope_outside():
    y = torch.tensor([-1.0, 0.25, 3.0], requires_grad=True)
    clamped = clamp_with_leak(y)
    assert clamped.tolist() == [0, 0.25, 1]
    assert torch.autograd.grad(clamped.sum(), y)[0].tolist() == pytest.approx([LEAK, 1, LEAK])


def test_a_black_background_still_has_a_gradient():
    purifier, x = RobustCodec(**SLIM), images().requires_grad_()
    with torch.no_grad():
        purifier.net.g_s[-2].bias.fill_(-5)
    restored = purifier.purified(x)
    assert not restored.any()
    assert torch.autograd.grad(restored.sum(), x)[0].abs().sum((1, 2, 3)).min() > 0


def test_without_group_norms_what_is_far_away_has_no_influence():
    x = images(64, 64)
    changed = x.clone()
    changed[..., -4:, -4:] = 0
    near, far = lively(group_norm=False), lively()
    corner = (..., slice(0, 4), slice(0, 4))
    assert torch.equal(near.purified(x)[corner], near.purified(changed)[corner])
    assert not torch.equal(far.net.encode(x)[corner], far.net.encode(changed)[corner])


# Networks, fields and weights.


@pytest.mark.parametrize("halvings", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_latents_have_the_resolution_of_the_halvings(halvings, channels):
    purifier = RobustCodec(**SLIM, halvings=halvings, channels=channels)
    y = purifier.net.encode(images(32, 48, channels=channels))
    assert y.shape == (3, 4, 32 // 2**halvings, 48 // 2**halvings)
    assert purifier.net.decode(y).shape == (3, channels, 32, 48)


def test_the_default_is_the_network_of_the_training_script():
    codec = RobustCodec(weights="untrained")
    assert sum(p.numel() for p in codec.net.parameters()) == 4_175_820
    assert (codec.width, codec.deep_width, codec.latents) == (96, 192, 48)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 2}, "channels=2"),
        ({"width": 12}, "width=12.*multiple of 8"),
        ({"width": -1, "group_norm": False}, "width=-1"),
        ({"deep_width": 9}, "deep_width=9"),
        ({"latents": -3}, "latents=-3"),
        ({"halvings": 0}, "halvings=0"),
        ({"blocks": 0}, "blocks=0"),
        ({"bit_depth": 9}, "bit_depth=9"),
        ({"resize": 1.5}, "resize=1.5"),
        ({"recompress": 0}, "recompress=0"),
        ({"model": "hyperprior", "channels": 1}, "channels=1.*model=hyperprior"),
        ({"model": "cheng2020", "latents": 9}, "latents=9.*width=8"),
    ],
)
def test_a_field_out_of_its_range_is_refused(fields, message):
    with pytest.raises(BadParameter, match=message):
        RobustCodec(**SLIM | fields)


def test_grey_images_are_refused_by_a_codec_of_colours():
    with pytest.raises(Mismatch, match=r"takes images of 3 channels, got 1"):
        lively().purified(images(channels=1))


def test_weights_of_another_model_are_refused():
    with pytest.raises(BadWeights, match="model='hyperprior'"):
        RobustCodec(model="hyperprior", weights="robust-codec-cifar10-adv")


def test_what_ships_knows_the_classifier_that_it_was_trained_through():
    purifier = load("robust-codec:weights=robust-codec-cifar10-adv", "defense")
    classifier = load("resnet20:weights=resnet20-cifar10", "classifier")
    (training,) = purifier.trained_on
    assert str(training) == "adversarial(n-fgsm, pgd-3, Linf 0.0313725, resnet20-cifar10)"
    assert training.knows_any_of(classifier.weights_sha256)


# The tensors of the training script.


def test_tensors_of_the_script_become_a_weights_file(tmp_path):
    codec = RobustCodec(**SLIM | {"blocks": 2}).net
    tensors = {name: t.contiguous() for name, t in codec.state_dict().items()}
    save_file(tensors, tmp_path / "codec.safetensors")
    CONVERTER["convert"](tmp_path / "codec.safetensors", tmp_path / "out.safetensors")
    purifier = RobustCodec(weights=str(tmp_path / "out.safetensors"))
    assert (purifier.width, purifier.deep_width, purifier.latents) == (8, 16, 4)
    x = images()
    torch.testing.assert_close(purifier.net.encode(x), codec.encode(x))


@pytest.mark.parametrize("broken", ["other", "half"])
def test_other_tensors_are_refused_in_one_line(broken, tmp_path):
    tensors = dict(RobustCodec(**SLIM).net.state_dict())
    if broken == "other":
        tensors = {"weight": torch.zeros(3)}
    save_file({k: t.contiguous() for k, t in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(BadWeights, match="codec_by_time") as e:
        CONVERTER["convert"](tmp_path / "x.safetensors", tmp_path / "out.safetensors")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_latents_are_in_steps_of_a_fourth():
    purifier, x = lively(), images()
    torch.testing.assert_close(purifier.net.encode(x), STEPS * purifier.net.g_a(2 * x - 1))
