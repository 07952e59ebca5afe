"""Two-stage restoration and DiffPure: schedule, samplers, gradients, and what they keep."""

import pytest
import torch
from tiny_priors import BOTH, STAGES, GaussianPrior, images, streams, tiny, with_prior

from defend.defenses.diffpure import DiffPure
from defend.defenses.diffusion import (
    CLEAN,
    add_noise,
    alpha_bar,
    alpha_bars,
    leading_timesteps,
    predict_image,
    trailing_timesteps,
    walk,
)
from defend.defenses.restoration import Pooling
from defend.defenses.two_stage import TwoStage
from defend.errors import BadParameter, Mismatch
from defend.noise import Noise
from defend.testing.defense_recomputation_checks import nothing_recomputed

# The schedule.


def test_the_share_of_the_image_is_the_product_over_the_betas():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = torch.cumprod(1 - betas, 0)
    computed = torch.tensor([alpha_bar(t) for t in range(1000)], dtype=torch.float64)
    torch.testing.assert_close(computed, expected)
    assert alpha_bar(CLEAN) == 1
    torch.testing.assert_close(alpha_bars(torch.arange(1000)).flatten(), expected.float())


@pytest.mark.parametrize("t", [0, 100, 999])
def test_the_image_is_found_again_if_the_noise_is_known(t):
    x, e = 2 * images() - 1, torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x, e = x.double(), e.double()
    torch.testing.assert_close(predict_image(add_noise(x, e, t), e, t), x)


TIMESTEPS = {
    "the paper's 100 steps": (leading_timesteps(100), list(range(990, -1, -10))),
    "20 trailing": (trailing_timesteps(20), list(range(999, 0, -50))),
    "7 trailing": (trailing_timesteps(7), [999, 856, 713, 570, 428, 285, 142]),
    "all": (trailing_timesteps(1000), list(range(999, -1, -1))),
    "all, leading": (leading_timesteps(1000), list(range(999, -1, -1))),
    "4 from 100": (trailing_timesteps(4, 100), [99, 74, 49, 24]),
}


@pytest.mark.parametrize(("timesteps", "expected"), TIMESTEPS.values(), ids=TIMESTEPS)
def test_timesteps(timesteps, expected):
    assert timesteps == expected


def test_few_steps_are_trailing_ones():
    assert TwoStage(**TINY_FIELDS, steps=99)._timesteps()[0] == 999
    assert TwoStage(**TINY_FIELDS, steps=100)._timesteps()[0] == 990
    assert TwoStage(**TINY_FIELDS, steps=100, spacing="trailing")._timesteps()[0] == 999


TINY_FIELDS = {"weights": "untrained", "size": 8, "blocks": "8", "layers": 1}
WALKS = {  # length, repeat -> pairs between the levels 4, 3, 2, 1, 0 (clean)
    (1, 1): [(4, 3), (3, 2), (2, 1), (1, 0)],
    (1, 2): [(4, 3), (3, 4), (4, 3), (3, 2), (2, 3), (3, 2), (2, 1), (1, 2), (2, 1), (1, 0)],
    (2, 2): [(4, 3), (3, 2), (2, 1), (1, 3), (3, 2), (2, 1), (1, 0)],
    (3, 3): [(4, 3), (3, 2), (2, 1), *2 * [(1, 4), (4, 3), (3, 2), (2, 1)], (1, 0)],
}


@pytest.mark.parametrize(("length", "repeat"), WALKS)
def test_journeys_back_go_where_the_paper_says(length, repeat):
    timesteps = trailing_timesteps(4)
    levels = dict(zip([*timesteps, CLEAN], (4, 3, 2, 1, 0), strict=True))
    pairs = [(levels[a], levels[b]) for a, b in walk(timesteps, length, repeat)]
    assert pairs == WALKS[length, repeat]


def test_steps_that_do_not_divide_1000_are_trailing_ones():
    """A stride of whole timesteps would begin at timestep 500 of 1,000 with 501 steps."""
    for steps in (300, 501, 999):
        assert TwoStage(**TINY_FIELDS, steps=steps)._timesteps()[0] == 999
    assert TwoStage(**TINY_FIELDS, steps=200)._timesteps()[0] == 995


def test_a_journey_back_adds_the_noise_of_the_forward_process():
    """From variance v at timestep s, the way to t gives abar_t / abar_s v + 1 - abar_t / abar_s."""
    purifier, zeros = tiny(TwoStage, steps=4), torch.zeros(512, 3, 8, 8)
    x = purifier._step(zeros, Pooling(1), 249, 499, zeros, streams(512))
    share = alpha_bar(499) / alpha_bar(249)
    assert x.var().item() == pytest.approx(1 - share, rel=0.02)


# What is kept.


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 5), (13, 21)], ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_the_means_of_the_input_are_kept(stage, size):
    x, purifier = images(size=size[0], width=size[1]), tiny(stages=stage, steps=3)
    means = purifier._poolings(x)[1] if stage == "sr" else STAGES[stage]
    y = purifier.purified(x, streams())
    torch.testing.assert_close(means.reduce(y), means.reduce(x), atol=1e-4, rtol=0)
    assert (y - x).abs().max() > 0.05  # the rest is not


def test_both_stages_keep_the_mean_of_each_square_and_all_channels():
    x = images(size=9)
    y = tiny(steps=3).purified(x, streams())
    both = [STAGES["color"].reduce(STAGES["sr"].reduce(image)) for image in (x, y)]
    torch.testing.assert_close(both[1], both[0], atol=1e-4, rtol=0)
    assert (STAGES["sr"].reduce(y) - STAGES["sr"].reduce(x)).abs().max() > 0.01


class NoNetwork(torch.nn.Module):
    """Raises where a prior would be asked."""

    mean, size, channels = torch.tensor([0.5, 0.4, 0.3]), 8, 3

    def forward(self, x_t, t):
        raise AssertionError("the baseline asked the network")


def test_the_baseline_is_interpolation_then_the_mean_chroma_without_a_network():
    """In the middle of the range nothing is clipped, so that both stages have closed forms."""
    x = 0.2 * images(size=8) + 0.4
    purifier = with_prior(TwoStage, NoNetwork(), stages="sr", sampler="interpolation")
    enlarged = torch.nn.functional.interpolate(Pooling(2).reduce(x), scale_factor=2, mode="bicubic")
    expected = enlarged + Pooling(2).project(x - enlarged)
    torch.testing.assert_close(purifier.purified(x, streams()), expected, atol=1e-5, rtol=0)
    purifier = with_prior(TwoStage, NoNetwork(), stages="color", sampler="interpolation")
    expected = x.mean(1, keepdim=True) + torch.tensor([0.1, 0.0, -0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(purifier.purified(x, streams()), expected, atol=1e-5, rtol=0)
    assert not purifier.card.stochastic


def test_stage_two_gets_what_stage_one_made():
    x = images()
    first = tiny(stages="sr", steps=3).purified(x, streams())
    expected = tiny(stages="color", steps=3).purified(first, streams())
    assert torch.equal(tiny(stages="both", steps=3).purified(x, streams()), expected)


@pytest.mark.parametrize("size", [4, 6, 8, 12, 16, 24])
def test_little_of_a_perturbation_within_the_squares_survives_at_any_size(size):
    """And two draws differ as much in larger images as in those of the prior's size."""
    purifier = with_prior(TwoStage, GaussianPrior(), stages="sr", steps=5)
    x, pattern = 0.1 * images(64, size) + 0.5, 0.04 * (images(64, size, seed=1) - 0.5).sign()
    means = purifier._poolings(x)[1]
    pattern = pattern - means.project(pattern)
    before, after, other = (
        purifier.purified(z, Noise.of(seed, torch.arange(64)))
        for z, seed in ((x, 5), (x + pattern, 5), (x, 6))
    )
    surviving = (pattern * (after - before)).sum() / pattern.square().sum()
    assert abs(surviving) < 0.2
    if size >= 8:  # smaller images average what is drawn
        drawn = (other - before).square().mean().sqrt()
        assert drawn > 0.005


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("sampler", ["ddnm", "diffpir"])
@pytest.mark.parametrize("size", [8, 12])
def test_without_noise_in_the_means_the_limit_of_little_noise_is_reached(stage, sampler, size):
    """Black and white images too, where clipping moves the means."""
    for x in (0.1 * images(4, size) + 0.5, images(4, size).round()):
        exact, limit = (
            with_prior(
                TwoStage, GaussianPrior(), stages=stage, steps=5, sampler=sampler, sigma_y=sigma_y
            )
            for sigma_y in (0.0, 1e-5)
        )
        means = limit._poolings(x)[1] if stage == "sr" else STAGES[stage]
        y = limit.purified(x, streams(4))
        torch.testing.assert_close(means.reduce(y), means.reduce(x), atol=1e-3, rtol=0)
        if sampler == "diffpir" or (size == 8 and x.max() < 1):
            torch.testing.assert_close(y, exact.purified(x, streams(4)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("sampler", "steps"), [("ddnm", 100), ("diffpir", 20)])
def test_noise_in_the_means_lets_them_move(stage, sampler, steps):
    """A perturbation within the means survives whole with sigma_y=0, and less and less above."""
    prior, means, x = GaussianPrior(), STAGES[stage], 0.1 * images(16) + 0.5

    def surviving_share(sigma_y):
        fields = {"stages": stage, "sampler": sampler, "steps": steps, "sigma_y": sigma_y}
        purifier = with_prior(TwoStage, prior, **fields)
        before, after = (purifier.purified(z, streams(16)) for z in (x, x + 0.01))
        return (means.reduce(after - before).mean() / 0.01).item()

    shares = [surviving_share(sigma_y) for sigma_y in (0, 0.01, 0.1, 1)]
    assert shares[0] == pytest.approx(1, abs=1e-3)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.1


# Gradients.


HUNDRED_CALLS = {
    "sr": (TwoStage, {"stages": "sr", "steps": 100}),
    "color, DDNM+": (TwoStage, {"stages": "color", "steps": 100, "sigma_y": 0.05}),
    "with journeys back": (TwoStage, {"stages": "sr", "steps": 50, "travel_repeat": 2}),
    "diffpure": (DiffPure, {"steps": 100}),
}


@pytest.mark.parametrize(("component", "fields"), HUNDRED_CALLS.values(), ids=HUNDRED_CALLS)
def test_the_gradient_through_100_steps_is_that_of_finite_differences(component, fields):
    purifier = tiny(component, size=4, blocks="8", **fields)
    purifier.net.double()
    x = (0.2 * images(1, 4) + 0.4).double()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()

    def value(x):
        return (weights * purifier.purified(x, streams(1))).sum()

    leaf = x.clone().requires_grad_()
    slope = (torch.autograd.grad(value(leaf), leaf)[0] * direction).sum().item()
    h = 1e-6
    with torch.no_grad():
        difference = ((value(x + h * direction) - value(x - h * direction)) / (2 * h)).item()
    assert slope == pytest.approx(difference, rel=1e-4, abs=1e-6)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize("component", BOTH)
def test_what_is_attacked_is_what_is_deployed_to_the_bit(component):
    purifier, x = tiny(component, steps=5), images()
    with torch.no_grad():
        deployed = purifier.purified(x, streams())
    attacked = purifier.purified(x.clone().requires_grad_(), streams())
    assert attacked.requires_grad and torch.equal(attacked, deployed)
    with nothing_recomputed():
        assert torch.equal(purifier.purified(x.clone().requires_grad_(), streams()), deployed)


# Errors.

WRONG_FIELDS = {
    "scale=0": (TwoStage, {"scale": 0}, "scale"),
    "steps=0": (TwoStage, {"steps": 0}, "steps"),
    "eta=2": (TwoStage, {"eta": 2.0}, "eta"),
    "sigma_y=-1": (TwoStage, {"sigma_y": -1.0}, "sigma_y"),
    "travel_length": (TwoStage, {"steps": 5, "travel_length": 6}, "travel_length"),
    "travel_length of stage 2": (
        TwoStage,
        {"steps": 10, "color_start": 499, "travel_length": 5, "travel_repeat": 2},
        "travel_length",
    ),
    "no journey": (TwoStage, {"steps": 1, "travel_repeat": 2}, "travel_length"),
    "leading": (TwoStage, {"steps": 300, "spacing": "leading"}, "spacing"),
    "travel_repeat": (TwoStage, {"travel_repeat": 0}, "travel_repeat"),
    "color_start": (TwoStage, {"steps": 5, "color_start": 99}, "color_start"),
    "colour of grey": (TwoStage, {"channels": 1, "stages": "color"}, "stages"),
    "blocks=": (TwoStage, {"blocks": "8-x"}, "blocks"),
    "blocks=7": (TwoStage, {"blocks": "7"}, "blocks"),
    "odd size": (TwoStage, {"size": 7, "blocks": "8-8"}, "size"),
    "layers=0": (DiffPure, {"layers": 0}, "layers"),
    "channels=2": (DiffPure, {"channels": 2}, "channels"),
    "t=0": (DiffPure, {"t": 0}, "t="),
    "steps > t": (DiffPure, {"t": 5, "steps": 6}, "steps"),
    "diffpure eta": (DiffPure, {"eta": -1.0}, "eta"),
}


@pytest.mark.parametrize(("component", "fields", "name"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_a_wrong_field_is_one_line_that_names_it(component, fields, name):
    with pytest.raises(BadParameter, match=f"{component.__name__}.{name}.*expected") as e:
        tiny(component, **fields)
    assert "\n" not in str(e.value)


def test_images_of_other_channels_are_refused():
    with pytest.raises(Mismatch, match="takes images of 3 channels, got 1"):
        tiny(steps=1).purified(images(channels=1))


def test_grey_images_get_stage_one_alone_and_a_warning():
    with pytest.warns(UserWarning, match="no colour; stages=sr alone"):
        purifier = tiny(channels=1, steps=2)
    assert purifier.settings["stages"] == "sr"
    alone = tiny(channels=1, steps=2, stages="sr")
    x = images(channels=1)
    assert torch.equal(purifier.purified(x, streams()), alone.purified(x, streams()))
