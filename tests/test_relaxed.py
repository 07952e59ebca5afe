"""Relaxed gradients: the value of the step, the gradient of a smooth function that tends to it."""

import math

import pytest
import torch
from tiny_restorers import SMALL, random_normal

import defend
from defend import Chain, Noise, Target
from defend.defenses import vq
from defend.defenses.bitdepth import BitDepth
from defend.defenses.gaussian import GaussianNoise
from defend.defenses.jpeg import Jpeg
from defend.defenses.median import Median
from defend.defenses.none import NoDefense
from defend.defenses.split_vqvae import SplitVQVAE
from defend.defenses.vq import Codebook, as_rows, soft_codes
from defend.errors import BadParameter
from defend.gradients import Relaxed, relax, relaxations_shown, soft_round
from defend.threat_models import TEMPERATURES

PURIFIERS = {
    "bitdepth": BitDepth(bits=2),
    "jpeg": Jpeg(quality=30),
    "split-vqvae": SplitVQVAE(size=16, channels=3, **SMALL),
    "chain": Chain(members=(Median(), BitDepth(bits=2), Jpeg())),
}


def gradient(purifier, x, backward):
    """Return the gradient of a random projection of the purified images."""
    x = x.clone().requires_grad_()
    y = purifier.purified(x, Noise.of(0, torch.arange(len(x))), backward)
    return torch.autograd.grad((y * random_normal(*y.shape, seed=1)).sum(), x)[0]


@pytest.mark.parametrize("temperature", [0.02, *TEMPERATURES, 10.0])
def test_the_smooth_staircase_passes_through_levels_and_edges_with_the_slopes_of_its_formula(
    temperature,
):
    alpha = 1 / temperature
    points = torch.tensor([-2.0, -1.5, 0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    soft = soft_round(points, temperature)
    assert torch.allclose(soft, points.detach())
    (slope,) = torch.autograd.grad(soft.sum(), points)
    on_level, on_edge = alpha / math.sinh(alpha), alpha / (2 * math.tanh(alpha / 2))
    expected = torch.tensor([on_level, on_edge, on_level, on_edge, on_level], dtype=torch.float64)
    assert torch.allclose(slope, expected)


def test_the_smooth_staircase_rises_and_tends_to_rounding():
    z = torch.linspace(-2.999, 3.001, 1001, dtype=torch.float64)
    distances = [(soft_round(z, t) - z.round()).abs().mean() for t in (1.0, 0.3, 0.1, 0.01)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.01
    assert all((soft_round(z, t).diff() >= 0).all() for t in (1.0, 0.1))


def test_relax_has_the_value_of_the_step_and_shows_its_relaxation_when_asked():
    z = torch.tensor([0.2, 0.7], requires_grad=True)
    with relaxations_shown():
        assert torch.equal(relax(3 * z, z.round()), 3 * z)
    value = relax(3 * z, z.round())
    assert torch.equal(value, torch.tensor([0.0, 1.0]))
    assert torch.autograd.grad(value.sum(), z)[0].tolist() == [3, 3]


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_a_temperature_is_above_zero(temperature):
    with pytest.raises(BadParameter, match="expected temperature > 0"):
        Relaxed(temperature)


@pytest.mark.parametrize("block", [1, 90, 10**6])
def test_soft_codes_are_the_softmax_of_squared_distances(block, monkeypatch):
    monkeypatch.setattr(vq, "BLOCK", block)
    z = random_normal(50, 4, seed=1).double().requires_grad_()
    codes, widths = random_normal(9, 4, seed=2).double(), torch.linspace(0.1, 3, 50).double()
    weights = (-torch.cdist(z, codes).square() / widths[:, None]).softmax(1)
    expected, soft = weights @ codes, soft_codes(z, codes, widths)
    assert torch.allclose(soft, expected)
    projection = random_normal(50, 4, seed=3).double()
    gradients = [torch.autograd.grad((s * projection).sum(), z)[0] for s in (soft, expected)]
    assert torch.allclose(*gradients)


def test_the_temperature_of_a_codebook_is_in_each_images_own_distance():
    """Two codes at -1 and 1, and z at 1 - d: the soft code is tanh(2 (1 - d) / (4 T d^2))."""
    book = Codebook(2, 1)
    book.codes.copy_(torch.tensor([[-1.0], [1.0]]))
    distances = torch.tensor([0.2, 0.5, 0.8])
    z = (1 - distances).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    with relaxations_shown():
        soft = book.relaxed(z, images=3, temperature=0.3)
    expected = torch.tanh(2 * (1 - distances) / (4 * 0.3 * distances**2))
    assert torch.allclose(soft, expected.view(3, 1, 1, 1).expand_as(soft))
    assert torch.equal(book.relaxed(z, 3, 0.3), book(z))


def test_a_vector_that_is_a_code_has_a_finite_gradient():
    book = Codebook(5, 3)
    z = book.codes.T.reshape(1, 3, 1, 5).clone().requires_grad_()
    value = book.relaxed(z, 1, 0.1)
    assert torch.equal(as_rows(value), book.codes)
    assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("purifier", PURIFIERS.values(), ids=PURIFIERS)
def test_memory_cuts_change_neither_value_nor_gradient(purifier, temperature):
    x, backward = purifier.example(6), Relaxed(temperature)
    leaf = x.clone().requires_grad_()
    noise = Noise.of(0, torch.arange(6))
    assert torch.equal(purifier.purified(leaf, noise, backward), purifier.purified(x, noise))
    whole = gradient(purifier, x, backward)
    purifier.max_batch = 4
    try:
        assert torch.allclose(gradient(purifier, x, backward), whole, rtol=1e-3, atol=1e-4)
    finally:
        purifier.max_batch = 256


def test_at_a_high_temperature_bit_depth_has_the_slope_of_the_identity():
    g = gradient(BitDepth(), BitDepth().example(), Relaxed(100.0))
    assert torch.allclose(g, random_normal(*g.shape, seed=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_jpeg_has_the_slope_of_the_staircase_on_its_levels(temperature):
    """All coefficients of a grey image are 0, where the declared slope is 0.05."""
    x, alpha = torch.full((1, 3, 16, 16), 128 / 255), 1 / temperature
    declared = gradient(Jpeg(), x, None) / 0.05
    expected = declared * alpha / math.sinh(alpha)
    assert torch.allclose(gradient(Jpeg(), x, Relaxed(temperature)), expected, rtol=1e-4)


def test_members_of_a_chain_without_a_relaxation_keep_their_declared_gradient():
    """Each image has one path through the median, and the bit depth's slopes on top of it."""
    x, t = BitDepth().example(), 0.3
    inner = gradient(BitDepth(), Median().purified(x), Relaxed(t))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((Median().purified(leaf) * inner).sum(), leaf)
    chain = Chain(members=(Median(), Chain(members=(NoDefense(), BitDepth()))))
    assert torch.allclose(gradient(chain, x, Relaxed(t)), expected)


def test_who_has_a_relaxation():
    assert all(purifier.has_relaxation for purifier in PURIFIERS.values())
    assert not Median().has_relaxation
    assert not Chain(members=(Median(), NoDefense())).has_relaxation
    with pytest.raises(NotImplementedError, match="Median declares no relaxed"):
        gradient(Median(), Median().example(), Relaxed(0.3))


def test_a_stochastic_chain_is_averaged_over_copies_with_their_noise():
    """The mean over copies is the mean of the single draws' relaxed gradients."""
    chain = Chain(members=(GaussianNoise(sigma=0.1), BitDepth(bits=1)))
    x, y = chain.example(4), torch.zeros(4, dtype=torch.int64)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3)).requires_grad_(False)
    noise = Noise.of(0, torch.arange(4))

    def first_logit(logits, _):
        return logits[:, 0]

    def target(eot):
        return Target(model, chain, noise, Relaxed(0.3), eot)

    averaged = target(3).gradient(x, y, first_logit)[0]
    single = target(1)
    draws = [single.gradient(x, y, first_logit)[0] for _ in range(3)]
    assert not torch.allclose(draws[0], draws[1])
    assert torch.allclose(averaged, sum(draws) / 3, atol=1e-6)


def test_the_names_that_a_plugin_needs_are_public():
    assert {"Relaxed", "relax", "soft_round"} <= set(defend.__all__)
