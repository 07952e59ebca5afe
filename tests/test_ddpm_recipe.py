"""The training of diffusion priors: its loss, what it stores, and that it learns."""

import pytest
import torch
from PIL import Image
from tiny_priors import TINY, GaussianPrior, tiny

from defend.defenses.ddpm_recipe import DdpmRecipe, sample
from defend.defenses.diffusion import alpha_bar
from defend.defenses.two_stage import TwoStage
from defend.errors import BadParameter
from defend.noise import Noise
from defend.training.data import Arrays
from defend.training.sheets import write_grid

QUICK = {"precision": "float32", "layout": "contiguous", "progress": False}


def streams(n):
    return Noise.of(5, torch.arange(n))


@pytest.fixture
def flat_images():
    """256 images of one colour each, around (.7, .5, .3)."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.tensor([0.7, 0.5, 0.3]) + 0.05 * torch.randn(256, 3, generator=generator)
    return colours.clamp(0, 1)[:, :, None, None].expand(256, 3, 8, 8).contiguous()


@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_the_loss_of_the_best_predictor_is_the_noise_that_nobody_can_know(gamma):
    """For a Gaussian prior, E |e - E[e | x_t]|^2 = abar s^2 / (abar s^2 + 1 - abar)."""
    prior, n = GaussianPrior(mean=0.0, sd=0.1), 4096
    x = 0.5 + 0.05 * torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    recipe = DdpmRecipe(gamma=gamma)
    losses = recipe.losses(_PerImage(prior), x, streams(n))
    expected = 0.0
    for t in range(1000):
        abar = alpha_bar(t)
        snr = abar / (1 - abar)
        weight = min(snr, gamma) / snr if gamma else 1.0
        expected += weight * abar * prior.sd**2 / (abar * prior.sd**2 + 1 - abar) / 1000
    assert losses.mean().item() == pytest.approx(expected, rel=0.05)


class _PerImage(torch.nn.Module):
    """A prior that is asked at one timestep for each image."""

    def __init__(self, prior):
        super().__init__()
        self.prior, self.size = prior, prior.size

    def forward(self, x_t, t):
        return torch.cat([self.prior(x_t[i : i + 1], int(k)) for i, k in enumerate(t)])


def test_it_learns_flat_colours(flat_images):
    """The loss falls below a third of that of a network that predicts no noise at all."""
    prior = TwoStage(**TINY)
    recipe = prior.fit(
        flat_images,
        val=(flat_images[:64], torch.zeros(64)),
        epochs=40,
        batch=32,
        lr=5e-3,
        ema=0.9,
        **QUICK,
    )
    x, y = flat_images[:64], torch.zeros(64)
    nothing = DdpmRecipe()
    zero = nothing.losses(_Zero(), x, Noise.of(0, torch.arange(64)).fork("val")).mean()
    assert -recipe.quality(prior, x, y).value < zero / 3
    assert str(prior.trained_on[0]) == "clean"
    torch.testing.assert_close(prior.net.mean, flat_images.mean((0, 2, 3)))


class _Zero(torch.nn.Module):
    size = 8

    def forward(self, x_t, t):
        return torch.zeros_like(x_t)


def test_images_of_another_size_are_resized(flat_images):
    prior = TwoStage(**TINY)
    recipe = DdpmRecipe()
    large = flat_images[:4].repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = recipe.losses(prior.net, flat_images[:4], streams(4))
    torch.testing.assert_close(recipe.losses(prior.net, large, streams(4)), expected)


def test_half_of_the_images_are_mirrored():
    x = torch.rand(400, 3, 8, 8)
    assert torch.equal(DdpmRecipe()._augment(x, streams(400)), x)
    mirrored = DdpmRecipe(flip=True)._augment(x, streams(400))
    is_mirrored = (mirrored == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(mirrored[~is_mirrored], x[~is_mirrored])
    assert 0.4 < is_mirrored.float().mean() < 0.6


def test_samples_of_a_gaussian_prior_have_its_mean_and_deviation():
    x = 2 * sample(GaussianPrior(mean=0.2, sd=0.1), streams(64), 200) - 1
    assert x.mean().item() == pytest.approx(0.2, abs=0.01)
    assert x.std().item() == pytest.approx(0.0925, rel=0.02)  # that of 200 steps; .1 in the limit


def test_a_sheet_of_samples_is_written(flat_images, tmp_path):
    prior, path = tiny(TwoStage), tmp_path / "sheets" / "samples.png"
    DdpmRecipe(sheet=str(path)).quality(prior, flat_images[:4], torch.zeros(4))
    with Image.open(path) as sheet:
        assert sheet.size == (32, 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_images_row_after_row(channels, tmp_path):
    x = torch.arange(5).view(5, 1, 1, 1).expand(5, channels, 2, 2) / 255
    write_grid(x, 3, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (6, 4)
        assert grid.mode == ("L" if channels == 1 else "RGB")
        values = [grid.getpixel((2 * i, 2 * j)) for j in range(2) for i in range(3)]
    first = [v if channels == 1 else v[0] for v in values]
    assert first == [0, 1, 2, 3, 4, 255]


def test_a_sheet_that_cannot_be_written_is_refused_before_the_training():
    with pytest.raises(BadParameter, match=r"-o sheet=.*cannot be written") as e:
        DdpmRecipe(sheet="/proc/nowhere/samples.png")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("options", [{"gamma": -1.0}, {"sheet": "samples.jpg"}])
def test_a_wrong_option_is_one_line(options):
    with pytest.raises(BadParameter, match=f"DdpmRecipe.{next(iter(options))}.*expected"):
        DdpmRecipe(**options)


def test_the_prior_holds_the_mean_colour_of_its_images(flat_images):
    prior = TwoStage(**TINY).net
    assert prior.mean.tolist() == [0.5, 0.5, 0.5]
    DdpmRecipe().initialise(prior, Arrays(flat_images, torch.zeros(256)))
    torch.testing.assert_close(prior.mean, flat_images.mean((0, 2, 3)))
