"""What the samplers of two-stage and DiffPure draw, on priors that are known in closed form."""

import math

import pytest
import torch
from tiny_priors import STAGES, GaussianPrior, images, streams, tiny, with_prior

from defend.defenses.diffpure import DiffPure
from defend.defenses.diffusion import (
    CLEAN,
    alpha_bar,
    predict_image,
    trailing_timesteps,
)
from defend.defenses.two_stage import TwoStage

# The samplers, on a prior in closed form: e is linear in x_t, so that means and variances follow
# a recursion, which is written here by itself.


def null_part(x, means):
    """Return what the means do not see of pixels, in [-1, 1]."""
    x = 2 * x - 1
    return x - means.project(x)


def drawn_variance(prior, steps, eta):
    """Return the variance in [-1, 1] of a value that the means leave free."""
    timesteps = trailing_timesteps(steps)
    variance = 1.0
    for t, following in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
        abar, next_abar, gain = alpha_bar(t), alpha_bar(following), prior.gain(t)
        e = (1 - math.sqrt(abar) * gain) / math.sqrt(1 - abar)
        factor = math.sqrt(next_abar) * gain + math.sqrt((1 - next_abar) * (1 - eta**2)) * e
        variance = factor**2 * variance + (1 - next_abar) * eta**2
    return variance


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("sampler", ["ddnm", "diffpir"])
@pytest.mark.parametrize(("steps", "eta"), [(5, 0.85), (50, 0.85), (50, 0.0)])
def test_what_is_drawn_has_the_variance_of_the_recursion(stage, sampler, steps, eta):
    prior, means = GaussianPrior(), STAGES[stage]
    fields = {"steps": steps, "eta": eta, "sampler": sampler, "spacing": "trailing"}
    purifier = with_prior(TwoStage, prior, stages=stage, **fields)
    drawn = null_part(purifier.purified(0.1 * images(256) + 0.5, streams(256)), means)
    free_share = 1 - 1 / means.group
    expected = free_share * drawn_variance(prior, steps, eta)
    assert drawn.square().mean().item() == pytest.approx(expected, rel=0.03)


def test_many_steps_without_fresh_noise_draw_from_the_posterior():
    """With fresh noise at each step the sampler of the paper draws too little variance."""
    prior, means, variances = GaussianPrior(), STAGES["sr"], {}
    for eta in (0.0, 0.85):
        purifier = with_prior(TwoStage, prior, stages="sr", steps=1000, eta=eta)
        drawn = null_part(purifier.purified(0.1 * images(128) + 0.5, streams(128)), means)
        variances[eta] = drawn.square().mean().item() / (1 - 1 / means.group)
    assert variances[0.0] == pytest.approx(prior.sd**2, rel=0.1)
    assert variances[0.85] < 0.8 * prior.sd**2


def drawn_variance_of_means(prior, means, steps, eta, sigma_y):
    """Return the variance in [-1, 1] of A x, by equations 17 to 19 of DDNM+.

    The last step weighs y and the prediction by the inverse variances of their errors.
    """
    timesteps, scale = trailing_timesteps(steps), 2 * sigma_y * math.sqrt(means.group)
    variance = 1 / means.group
    for t, following in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
        next_abar, gain = alpha_bar(following), prior.gain(t)
        arriving = math.sqrt(next_abar) * scale
        if following == CLEAN:
            of_image = 1 / alpha_bar(t) - 1
            trust, fresh = of_image / (of_image + scale**2), 0
        elif next_abar * scale**2 <= 1 - next_abar:
            trust, fresh = 1, 1 - next_abar - arriving**2
        else:
            trust = math.sqrt((1 - next_abar) * (1 - eta**2)) / arriving
            fresh = eta**2 * (1 - next_abar)
        variance = next_abar * (1 - trust) ** 2 * gain**2 * variance + fresh / means.group
    return variance


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("sigma_y", [0.05, 0.2])
def test_with_noise_in_the_means_both_parts_have_the_variance_of_the_recursion(stage, sigma_y):
    prior, means, eta = GaussianPrior(sd=0.3), STAGES[stage], 0.5
    fields = {"steps": 100, "spacing": "trailing", "eta": eta, "sigma_y": sigma_y}
    purifier = with_prior(TwoStage, prior, stages=stage, **fields)
    output = purifier.purified(torch.full((512, 3, 8, 8), 0.55), streams(512))
    expected = (1 - 1 / means.group) * drawn_variance(prior, 100, eta)
    assert null_part(output, means).square().mean().item() == pytest.approx(expected, rel=0.04)
    expected = drawn_variance_of_means(prior, means, 100, eta, sigma_y)
    assert means.reduce(2 * output - 1).var().item() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_diffpure_draws_the_variance_of_the_recursion(eta):
    prior, variance = GaussianPrior(), 1 - alpha_bar(99)
    timesteps = trailing_timesteps(20, 100)
    for t, following in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
        abar, next_abar, gain = alpha_bar(t), alpha_bar(following), prior.gain(t)
        fresh = eta**2 * (1 - next_abar) / (1 - abar) * (1 - abar / next_abar)
        e = (1 - math.sqrt(abar) * gain) / math.sqrt(1 - abar)
        factor = math.sqrt(next_abar) * gain + math.sqrt(1 - next_abar - fresh) * e
        variance = factor**2 * variance + fresh
    purifier = with_prior(DiffPure, prior, t=100, steps=20, eta=eta)
    output = purifier.purified(torch.full((256, 3, 8, 8), 0.55), streams(256))
    assert (2 * output - 1).var().item() == pytest.approx(variance, rel=0.03)


def test_diffpure_near_black_draws_from_the_posterior_of_the_clipped_image():
    """A step draws from q(x_t' | x_t, x_0): equations 6 and 7 of Ho et al., arXiv:2006.11239."""
    prior, t = GaussianPrior(mean=-1.0, sd=0.3), 50
    purifier = with_prior(DiffPure, prior)
    x_t = 0.3 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    image = predict_image(x_t, prior(x_t, t), t)
    assert 0.2 < (image == -1).float().mean() < 0.8
    abar, next_abar = alpha_bar(t), alpha_bar(t - 1)
    beta = 1 - abar / next_abar
    mean = math.sqrt(next_abar) * beta * image + math.sqrt(1 - beta) * (1 - next_abar) * x_t
    variance = (1 - next_abar) / (1 - abar) * beta
    expected = mean / (1 - abar) + math.sqrt(variance) * streams(4).normal(x_t)
    torch.testing.assert_close(purifier._step(t, t - 1, x_t, streams(4)), expected)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_diffpure_returns_the_posterior_mean_of_a_gaussian(eta):
    """E[output | x] = E[E[x_0 | x_t] | x], exactly linear in x, in as many steps as timesteps."""
    prior = GaussianPrior(mean=0.0, sd=0.1)
    purifier = with_prior(DiffPure, prior, t=100, steps=100, eta=eta)
    x = torch.full((512, 3, 8, 8), 0.55)
    mean = (2 * purifier.purified(x, streams(512)) - 1).mean().item()
    x_in_model = 0.1
    expected = prior.gain(99) * math.sqrt(alpha_bar(99)) * x_in_model
    if eta == 0:  # DDIM follows the flow, under which x_t / sd_t stays: not the posterior mean
        sd_t = math.sqrt(alpha_bar(99) * prior.sd**2 + 1 - alpha_bar(99))
        expected = math.sqrt(alpha_bar(99)) * x_in_model * prior.sd / sd_t
    assert mean == pytest.approx(expected, rel=0.03)


def test_a_late_start_begins_with_the_mean_colour():
    """At timestep 0 there is nothing left to draw: the output is grey and the mean chroma."""
    purifier = tiny(stages="color", steps=1000, color_start=0)
    purifier.net.mean.copy_(torch.tensor([0.6, 0.5, 0.4]))
    x = 0.2 * images() + 0.4
    expected = x.mean(1, keepdim=True) + torch.tensor([0.1, 0.0, -0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(purifier.purified(x, streams()), expected, atol=0.05, rtol=0)


def test_a_late_start_takes_its_share_of_the_steps():
    calls = []
    purifier = tiny(stages="color", steps=20, color_start=499)
    purifier.net.register_forward_pre_hook(lambda _, args: calls.append(args[1]))
    purifier.purified(images(), streams())
    assert calls == list(range(499, 0, -50))
