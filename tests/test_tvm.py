"""Total variation minimisation against its objective, scipy's minimiser and finite differences."""

import numpy as np
import pytest
import torch
from photographs import crops, noise, random_like
from scipy.optimize import minimize as scipy_minimize

from defend.defenses import tvm
from defend.defenses.tvm import TotalVariation

WEIGHT = 0.05  # lambda
CONVERGED = 300  # steps after which a tiny image does not change any more


def tiny_image():
    """Return an image (1, 1, 6, 7) in float64 with its mask."""
    x = crops(6, 7)[:1, :1].double()
    return x, (noise(1).uniform(x) < 0.6).double()


def half_mask(x):
    """Return a mask that retains half of the pixels."""
    return (noise(len(x)).uniform(x) < 0.5).float()


def test_the_objective_decreases_at_every_step_and_converges():
    x = crops(32, 32)
    mask = half_mask(x)
    solutions = [tvm.minimise(x, mask, WEIGHT, steps) for steps in range(12)]
    values = torch.stack([tvm.objective(z, x, mask, WEIGHT) for z in solutions])
    assert (values.diff(dim=0) <= 1e-6 * values[:-1]).all()
    assert (values[-1] < 0.8 * values[0]).all()
    assert (values[-2] - values[-1] < 1e-3 * values[-1]).all()


def test_the_minimiser_equals_scipy():
    x, mask = tiny_image()

    def objective_at(z):
        return tvm.objective(torch.tensor(z).view_as(x), x, mask, WEIGHT).item()

    start = tvm.initial_image(x, mask).flatten().numpy()
    expected = scipy_minimize(objective_at, start, method="BFGS", options={"gtol": 1e-7})
    z = tvm.minimise(x, mask, WEIGHT, CONVERGED).flatten().numpy()
    assert abs(objective_at(z) - expected.fun) < 1e-6 * expected.fun
    assert np.abs(z - expected.x).max() < 1e-3


def test_the_gradient_equals_finite_differences_of_the_minimiser():
    x, mask = tiny_image()
    output_gradient, direction = random_like(x, seed=0), random_like(x, seed=1)
    z = x.clone().requires_grad_()
    tvm._Minimiser.apply(z, mask, WEIGHT, CONVERGED).backward(output_gradient)
    h = 1e-5
    above = tvm.minimise(x + h * direction, mask, WEIGHT, CONVERGED)
    below = tvm.minimise(x - h * direction, mask, WEIGHT, CONVERGED)
    slope = ((above - below) * output_gradient).sum() / (2 * h)
    assert abs(slope - (z.grad * direction).sum()) < 1e-3 * abs(slope)
    assert (z.grad[mask == 0] == 0).all()


def test_blocks_do_not_change_the_result(monkeypatch):
    x = torch.cat([crops(32, 32), crops(32, 32).flip(3)])
    assert len(x) > 2
    mask, results = half_mask(x), []
    for block in (1, 2 * x[0].numel(), x.numel()):
        monkeypatch.setattr(tvm, "BLOCK", block)
        z = x.clone().requires_grad_()
        out = tvm._Minimiser.apply(z, mask, WEIGHT, 3)
        out.backward(x.flip(0))
        results.append(torch.stack([out.detach(), z.grad]))
    one_by_one, in_pairs, together = results
    assert torch.allclose(one_by_one, together, atol=1e-6)
    assert torch.allclose(in_pairs, together, atol=1e-6)


@pytest.mark.parametrize("shade", [0.0, 0.3, 1.0])
def test_a_constant_image_is_unchanged(shade):
    x = torch.full((2, 3, 16, 16), shade)
    assert torch.allclose(TotalVariation().purified(x, noise(2)), x, atol=1e-6)


def test_dropped_pixels_have_no_influence():
    x, purifier = crops(16, 16), TotalVariation(keep=0.5)
    dropped = noise(2).uniform(x) >= 0.5
    inverted = torch.where(dropped, 1 - x, x)
    assert torch.equal(purifier.purified(x, noise(2)), purifier.purified(inverted, noise(2)))


def test_noise_is_removed():
    """One image is a temple full of detail, the other one a flower before a blurred background."""
    x = crops(64, 64)
    noisy = (x + 0.1 * noise(2).fork("test").normal(x)).clamp(0, 1)
    cleaned = TotalVariation(keep=1, weight=0.05).purified(noisy, noise(2))
    error_before = (noisy - x).square().mean((1, 2, 3))
    ratio = (cleaned - x).square().mean((1, 2, 3)) / error_before
    assert ratio[0] < 0.8
    assert ratio[1] < 0.25


def test_only_a_purifier_that_retains_all_pixels_is_deterministic():
    assert not TotalVariation(keep=1).card.stochastic
    assert TotalVariation(keep=0.9).card.stochastic
    assert TotalVariation.card.stochastic
