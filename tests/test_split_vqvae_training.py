"""The training of Split-VQ-VAE: perturbations, surrogates and recipes, on real digits."""

from dataclasses import dataclass

import pytest
import torch
from recipe_toys import save_toy
from tiny_restorers import TINY, noise, real_digits
from torch import nn

from defend.defenses.corrupt import (
    attack_surrogates,
    build_surrogates,
    corrupt,
    draw_pattern,
    draw_share,
    input_gradient,
    recognition_loss,
)
from defend.defenses.pieces import split_image
from defend.defenses.split_vqvae import SplitVQVAE
from defend.defenses.split_vqvae_training import Trainee
from defend.defenses.vq import as_rows, nearest_codes
from defend.errors import BadParameter
from defend.trained_on import TrainedOn
from defend.training.data import Arrays
from defend.training.quality import psnr

REPRODUCIBLE = {"precision": "float32", "layout": "contiguous", "progress": False}


@pytest.fixture(scope="module")
def digits():
    return real_digits()


# Patterns


def test_patterns_are_bounded_and_have_many_lengths():
    patterns = draw_pattern(torch.zeros(256, 1, 28, 28), noise(256))
    assert patterns.min() >= -1
    assert patterns.max() <= 1
    signs = patterns.sign()
    correlation = (signs[..., 1:] * signs[..., :-1]).mean((1, 2, 3))
    assert correlation.min() < 0.2, "neighbouring signs are correlated in all patterns"
    assert correlation.max() > 0.7, "neighbouring signs are independent in all patterns"
    saturated = (patterns.abs() > 0.99).float().mean((1, 2, 3))
    assert saturated.min() < 0.4, "all patterns consist of signs"
    assert saturated.max() > 0.95, "no pattern consists of signs"


def test_half_of_the_patterns_lead_to_another_image(digits):
    x = digits[0][:256]
    way = x.roll(1, 0) - x
    projection = (draw_pattern(x, noise(256)) * way).mean((1, 2, 3)) / way.abs().mean((1, 2, 3))
    assert 0.3 < (projection > 0.5).float().mean() < 0.6
    assert (projection < 0.2).float().mean() > 0.3


def test_perturbations_stay_within_the_amplitude(digits):
    x, y = digits[0][:64], digits[1][:64]
    attacked = attack_surrogates(build_surrogates(1, 8, 10), x, y, 0.3, noise(64))
    for out in (corrupt(x, 0.3, noise(64)), attacked):
        assert out.min() >= 0
        assert out.max() <= 1
        assert not out.requires_grad
        reach = (out - x).abs().amax((1, 2, 3))
        assert reach.max() <= 0.3 + 1e-6
        assert reach.min() < 0.06
        assert reach.mean() > 0.1


def test_large_shares_are_more_frequent():
    """With density 2 s the mean is 2/3, and the square of a share is uniform."""
    shares = draw_share(torch.zeros(20_000, 1, 1, 1), noise(20_000)).flatten().double()
    assert abs(shares.mean() - 2 / 3) < 0.01
    quantiles = torch.linspace(0, 1, 20_000)
    assert (shares.square().sort().values - quantiles).abs().max() < 0.02


# Surrogates


def copy_state(net):
    """Return a copy of the parameters and statistics of a network."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def has_state(net, state):
    """Return True if the parameters and statistics are those of the copy."""
    return all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_the_recognition_loss_trains_images_alone(digits):
    x, y = digits[0][:32].clone().requires_grad_(), digits[1][:32]
    nets = build_surrogates(1, 8, 10).train()
    state = copy_state(nets)
    recognition_loss(nets, x, y).backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in nets.parameters())
    assert nets.training
    assert has_state(nets, state), "running statistics moved"


def test_attacks_leave_surrogates_unchanged_and_raise_their_loss(digits):
    x, y = digits[0][:128], digits[1][:128]
    for net in build_surrogates(1, 8, 10):
        net.train()
        state = copy_state(net)
        gradient = input_gradient(net, x, y)
        assert net.training
        assert has_state(net, state)
        assert all(p.grad is None for p in net.parameters())
        net.eval()
        steps = (-0.01, 0.0, 0.01)
        perturbed = [x + step * gradient.sign() for step in steps]
        before, at_x, after = (nn.functional.cross_entropy(net(p), y) for p in perturbed)
        assert before < at_x < after, "the gradient does not lead to a higher loss"


# Recipes


def test_training_starts_at_the_brightness_of_the_images(digits):
    purifier = SplitVQVAE(weights="untrained", grid=1, codes=64, hidden=16, size=8)
    trainee = Trainee(purifier.net, purifier.grid, nn.ModuleList())
    before = (purifier.net(digits[0]).mean() - digits[0].mean()).abs()
    trainee.start(digits[0], 0)
    after = (purifier.net(digits[0]).mean() - digits[0].mean()).abs()
    assert after < 0.02 < before


@pytest.mark.parametrize(
    ("recipe", "trained_on"),
    [
        ({}, "clean"),
        ({"recipe": "denoise"}, "corrupted"),
        (
            {"recipe": "denoise", "perturbation": "adversarial", "amplitude": 0.25},
            "adversarial(fgsm, Linf 0.25, 3 surrogates)",
        ),
    ],
)
def test_recipes_learn_to_restore(digits, recipe, trained_on):
    """The error is below that of the mean image, and most codes are used.

    Nothing that exists in training only remains in the network.
    """
    purifier = SplitVQVAE(**TINY | {"hidden": 16})
    options = {"epochs": 15, "batch": 32, "lr": 1e-2, "schedule": "constant", **REPRODUCIBLE}
    purifier.fit(*digits, val=digits, **options, **recipe)
    x, net = digits[0], purifier.net
    error_of_mean = (x.mean(0) - x).square().mean()
    assert (purifier.purified(x) - x).square().mean() < 0.9 * error_of_mean
    used = nearest_codes(as_rows(net.encode(split_image(x, 2))), net.codebook.codes).unique()
    assert len(used) > 10
    assert str(purifier.trained_on[0]) == trained_on
    modules = {name.partition(".")[0] for name in net.state_dict()}
    assert modules == {"encoder", "codebook", "decoder"}
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


@dataclass(frozen=True)
class InterruptedArrays(Arrays):
    """Raise KeyboardInterrupt at image `interrupt_at`, unless it is 0."""

    interrupt_at: int = 0

    def to(self, device):
        return self

    def batch(self, start, size, seed):
        if start >= self.interrupt_at > 0:
            raise KeyboardInterrupt
        return super().batch(start, size, seed)


@pytest.mark.parametrize(
    "recipe",
    [{"recipe": "paper"}, {"recipe": "denoise", "perturbation": "adversarial"}],
    ids=["paper", "denoise"],
)
def test_resumed_training_equals_uninterrupted_training(digits, tmp_path, recipe):
    options = {"epochs": 2, "batch": 64, **REPRODUCIBLE, **recipe}
    resumable = {"resume": tmp_path / "r", "save_every": 0}
    uninterrupted, resumed = SplitVQVAE(**TINY), SplitVQVAE(**TINY)
    uninterrupted.fit(*digits, **options)
    with pytest.raises(KeyboardInterrupt):
        resumed.fit(InterruptedArrays(*digits, interrupt_at=640), **resumable, **options)
    resumed.fit(InterruptedArrays(*digits), **resumable, **options)
    resumed_state = resumed.net.state_dict()
    for name, tensor in uninterrupted.net.state_dict().items():
        assert torch.equal(tensor, resumed_state[name]), name


def mean_error(purifier, x):
    return float((purifier.purified(x) - x).square().mean())


def test_fine_tuning_keeps_the_codes(digits, tmp_path):
    """From the first step on it restores as well as the weights that it began from."""
    x = digits[0]
    base = SplitVQVAE(**TINY | {"hidden": 16})
    base.fit(*digits, epochs=15, batch=32, lr=1e-2, schedule="constant", **REPRODUCIBLE)
    path = save_toy(base, tmp_path / "base", TrainedOn(kind="clean"))
    few_steps = {"epochs": 0.2, "batch": 32, "lr": 1e-4, **REPRODUCIBLE}
    fine_tuned, from_scratch = (SplitVQVAE(**TINY | {"hidden": 16}) for _ in range(2))
    fine_tuned.fit(*digits, start=str(path), **few_steps)
    from_scratch.fit(*digits, **few_steps)
    assert mean_error(fine_tuned, x) < 1.1 * mean_error(base, x)
    assert mean_error(from_scratch, x) > 1.3 * mean_error(base, x)


def test_the_quality_is_that_of_restored_perturbed_images(digits):
    x, y = digits
    learning = {"epochs": 15, "batch": 32, "lr": 1e-2, "schedule": "constant", **REPRODUCIBLE}
    purifier = SplitVQVAE(**TINY | {"hidden": 16})
    clean = purifier.fit(x, **learning)
    psnr_of_clean = psnr(purifier, x)
    assert clean.quality(purifier, x, y).value == pytest.approx(psnr_of_clean)
    options = {"recipe": "denoise", "perturbation": "adversarial", "amplitude": 0.9}
    noisy = SplitVQVAE(**TINY).fit(x, y, epochs=0.1, **options, **REPRODUCIBLE)
    quality = noisy.quality(purifier, x, y)
    assert quality.value < psnr_of_clean - 0.5
    assert quality == noisy.quality(purifier, x, y)


def test_missing_labels_are_refused(digits):
    with pytest.raises(BadParameter, match="labels"):
        SplitVQVAE(**TINY).fit(digits[0], recipe="denoise", perturbation="adversarial")


def test_a_misspelt_option_is_refused_with_the_right_one(digits):
    with pytest.raises(BadParameter, match="amplitude"):
        SplitVQVAE(**TINY).fit(*digits, recipe="denoise", amplitud=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amplitude": 0.2}, "amplitude=0.2.*recipe=denoise alone"),
        ({"perturbation": "adversarial"}, "perturbation='adversarial'.*recipe=denoise alone"),
        (
            {"recipe": "denoise", "recognition": 0.5},
            "recognition=0.5.*perturbation=adversarial alone",
        ),
    ],
)
def test_an_option_without_effect_is_refused(digits, options, message):
    with pytest.raises(BadParameter, match=message):
        SplitVQVAE(**TINY).fit(*digits, **options)
