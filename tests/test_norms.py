"""The eps balls and the box: projections, directions and starts against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import kstest

from defend.errors import BadParameter, BrokenAttack
from defend.noise import Noise
from defend.norms import (
    NORMS,
    check_adversarial,
    norm_of,
    project,
    random_start,
    steepest_direction,
    tolerance,
)

PIXEL = st.floats(0, 1, width=32)
ANY_NUMBER = st.floats(-3, 3, width=32)
EPS = st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.0, 4.0])


def lists_of_length(n):
    """A strategy for a clean image, any point and a second image, each of n values."""
    elements = (PIXEL, ANY_NUMBER, PIXEL)
    return st.tuples(*(st.lists(element, min_size=n, max_size=n) for element in elements))


IMAGES = st.integers(1, 12).flatmap(lists_of_length)


def batch(values):
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def length(d, norm):
    return norm_of(d, norm).item()


@pytest.mark.parametrize("norm", NORMS)
@given(images=IMAGES, eps=EPS)
def test_projection_is_the_nearest_point_of_ball_and_box(norm, images, eps):
    x, start, image = map(batch, images)
    projected = project(start, x, eps, norm)
    assert projected.min() >= 0 and projected.max() <= 1
    assert length(projected - x, norm) <= eps * (1 + 1e-9) + 1e-12
    # The nearest point of a convex set: from it, the directions to the starting point and to any
    # point of the set enclose an angle of at least 90 degrees.
    inside = x + (image - x) * min(1.0, eps / max(length(image - x, norm), 1e-300))
    assert ((start - projected) * (inside - projected)).sum() <= 1e-7


@pytest.mark.parametrize("norm", NORMS)
@given(images=IMAGES, eps=EPS)
def test_projection_is_idempotent_and_leaves_inner_points_alone(norm, images, eps):
    x, start, image = map(batch, images)
    once = project(start, x, eps, norm)
    assert torch.allclose(project(once, x, eps, norm), once, rtol=0, atol=1e-9)
    inside = x + (image - x) * min(1.0, 0.99 * eps / max(length(image - x, norm), 1e-300))
    assert torch.allclose(project(inside, x, eps, norm), inside, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_euclidean_projection_agrees_with_a_convex_solver_where_the_box_is_active(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, 6)
    start = rng.normal(0.5, 2, 6)
    eps = 0.6
    x[0], start[0] = 0.02, -3.0  # the box is active at this pixel
    ball = {
        "type": "ineq",
        "fun": lambda z: eps**2 - ((z - x) ** 2).sum(),
        "jac": lambda z: -2 * (z - x),
    }
    solved = minimize(
        lambda z: ((z - start) ** 2).sum(),
        x,
        jac=lambda z: 2 * (z - start),
        bounds=[(0, 1)] * 6,
        constraints=[ball],
        tol=1e-14,
    )
    projected = project(batch(start), batch(x), eps, "L2").flatten().numpy()
    assert np.allclose(projected, solved.x, atol=1e-5)
    assert projected[0] == 0
    # The full budget is used although the box is active.
    assert length(batch(projected) - batch(x), "L2") == pytest.approx(eps)


def test_euclidean_projection_spends_its_budget_in_many_dimensions_too():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 3, 32, 32, generator=generator)
    step = torch.rand(16, 3, 32, 32, generator=generator)
    projected = project(x + 20 * (step - 0.5).pow(3), x, 4.0, "L2")
    assert torch.allclose(norm_of(projected - x, "L2"), torch.tensor(4.0), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e-25, 1e-37])
def test_the_steepest_direction_has_norm_one_however_small_the_gradient(scale):
    g = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        steepest_direction(g * scale, "L2"), g / norm_of(g, "L2").view(-1, 1, 1, 1), atol=1e-4
    )
    assert torch.equal(steepest_direction(g * scale, "Linf"), g.sign())


@pytest.mark.parametrize(
    ("norm", "dual"),
    [
        ("Linf", lambda g: g.abs().sum((1, 2, 3))),
        ("L2", lambda g: g.square().sum((1, 2, 3)).sqrt()),
    ],
)
def test_the_steepest_direction_reaches_the_dual_norm(norm, dual):
    g = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = steepest_direction(g, norm)
    assert torch.allclose(norm_of(d, norm), torch.ones(4, dtype=torch.float64))
    assert torch.allclose((g * d).sum((1, 2, 3)), dual(g))


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_of_zero_has_no_direction(norm):
    assert not steepest_direction(torch.zeros(2, 1, 4, 4), norm).any()


def grey_images_and_noise(n, shape=(1, 1, 3)):
    return torch.full((n, *shape), 0.5, dtype=torch.float64), Noise.of(3, torch.arange(n))


def test_starts_are_uniform_in_the_cube_and_box():
    x, noise = grey_images_and_noise(4000)
    x[..., 0] = 0.0  # only half of this pixel's interval lies in the box
    adv = random_start(x, 0.2, "Linf", noise)
    assert kstest(adv[..., 0].flatten(), "uniform", (0.0, 0.2)).pvalue > 0.01
    assert kstest(adv[..., 1:].flatten(), "uniform", (0.3, 0.4)).pvalue > 0.01


def test_starts_are_uniform_in_the_ball():
    x, noise = grey_images_and_noise(4000)
    d = random_start(x, 0.2, "L2", noise) - x
    radius = norm_of(d, "L2")
    assert kstest((radius / 0.2) ** 3, "uniform").pvalue > 0.01  # the volume within a radius
    for axis in range(3):  # on a sphere in three dimensions each coordinate is uniform: Archimedes
        assert kstest(d[..., axis].flatten() / radius, "uniform", (-1, 2)).pvalue > 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_starts_take_an_empty_batch_and_eps_zero(norm):
    empty = torch.rand(0, 3, 4, 4)
    start = random_start(empty, 0.1, norm, Noise.of(0, torch.arange(0)))
    assert start.shape == empty.shape
    x = torch.rand(5, 3, 4, 4)
    assert torch.equal(random_start(x, 0.0, norm, Noise.of(0, torch.arange(5))), x)


X = torch.full((2, 1, 4, 4), 0.5)
OUTSIDE = {
    "shape": (X[:1], "expected images"),
    "dtype": (X.double(), "expected images"),
    "finite": (X * float("nan"), "not finite"),
    "box": (X - 0.6, "left the box"),
    "ball": (X + 0.11, "left the Linf ball"),
}


@pytest.mark.parametrize("fault", OUTSIDE)
def test_images_outside_the_ball_or_the_box_are_refused(fault):
    adv, message = OUTSIDE[fault]
    with pytest.raises(BrokenAttack, match=f"pgd: .*{message}"):
        check_adversarial(adv, X, 0.1, "Linf", "pgd")


def test_rounding_errors_are_tolerated():
    check_adversarial(X + 0.1, X, 0.1, "Linf", "pgd")
    check_adversarial(X + 0.1 + 2e-6, X, 0.1 + 1.2e-6, "Linf", "pgd")
    check_adversarial(X[:0], X[:0], 0.1, "Linf", "pgd")
    assert tolerance(8 / 255, "Linf") == 1e-6
    assert tolerance(0.5, "L2") == 1e-5
    assert tolerance(3.0, "L2") == pytest.approx(3e-5)


def test_an_unknown_norm_names_the_known_ones():
    with pytest.raises(BadParameter, match="Linf, L2"):
        norm_of(X, "L1")


def test_a_point_of_the_ball_at_the_box_stays():
    """Every pixel meets the box inside the ball: hypothesis found Newton's method
    returning to x.
    """
    x, corner = torch.zeros(1, 1, 1, 4), torch.tensor([0.0, 0, 0, 1]).view(1, 1, 1, 4)
    assert torch.equal(project(corner, x, 1.0, "L2"), corner)
