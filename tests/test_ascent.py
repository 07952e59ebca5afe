"""One step of projected gradient ascent."""

import pytest
import torch
from attack_toys import EDGE, IMAGES, INSIDE, uphill

from defend.ascent import ascend
from defend.norms import norm_of, project, steepest_direction

NORMS = pytest.mark.parametrize("norm", ["Linf", "L2"])
GRADIENT = uphill(torch.arange(IMAGES) % 2)


@NORMS
def test_a_step_has_the_given_length(norm):
    moved = ascend(INSIDE, GRADIENT, 0.05, INSIDE, 1.0, norm)
    assert torch.allclose(norm_of(moved - INSIDE, norm), torch.tensor(0.05), atol=1e-6)
    assert torch.allclose(moved, INSIDE + 0.05 * steepest_direction(GRADIENT, norm), atol=1e-6)


@NORMS
def test_a_step_is_projected_onto_ball_and_box(norm):
    start = EDGE.flip(0)
    moved = ascend(start, GRADIENT, 0.5, EDGE, 0.1, norm)
    expected = project(start + 0.5 * steepest_direction(GRADIENT, norm), EDGE, 0.1, norm)
    assert torch.equal(moved, expected)
    assert (norm_of(moved - EDGE, norm) <= 0.1 + 1e-5).all()


@NORMS
def test_each_image_may_have_its_own_step(norm):
    steps = torch.linspace(0.01, 0.1, IMAGES)
    together = ascend(INSIDE, GRADIENT, steps, INSIDE, 1.0, norm)
    assert torch.allclose(norm_of(together - INSIDE, norm), steps, atol=1e-6)


@NORMS
def test_a_gradient_of_zero_leaves_the_image_where_it_is(norm):
    moved = ascend(INSIDE, torch.zeros_like(INSIDE), 0.1, INSIDE, 0.1, norm)
    assert torch.equal(moved, INSIDE)
