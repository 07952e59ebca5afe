"""The points that Square Attack queries, against the formulas of the paper."""

import pytest
import torch
from attack_toys import INSIDE, start_noise

from defend.attacks.square_proposals import (
    choose_channels,
    make_bump_pair,
    propose_changing_square,
    propose_square,
    propose_window,
    start_with_bumps,
    start_with_stripes,
)
from defend.norms import norm_of

CPU = torch.device("cpu")


def random_numbers(n, count):
    return start_noise(n).uniform(torch.zeros(n, count))


# L-inf: stripes and squares


def test_the_search_starts_with_vertical_stripes():
    d = start_with_stripes(INSIDE, 0.02, start_noise()) - INSIDE
    assert torch.allclose(d.abs(), torch.tensor(0.02))
    assert torch.allclose(d, d[:, :, :1].expand_as(d))
    assert 0.4 < (d > 0).float().mean() < 0.6


def test_squares_have_the_side_s_and_uniform_places():
    """Each image draws its own place; every pixel is reached, those at the borders too."""
    x = torch.full((4000, 2, 6, 5), 0.5)
    moved = propose_square(x, x, 0.1, 3, random_numbers(4000, 7)) != x
    assert (moved.flatten(1).sum(1) == 2 * 9).all()
    assert torch.equal(moved[:, 0], moved[:, 1]) and moved.any(0).all()
    first_pixel = moved[:, 0].flatten(1).int().argmax(1)
    corners = first_pixel.bincount(minlength=30).view(6, 5)[:4, :3]
    assert corners.min() > 4000 / 12 - 5 * (4000 / 12) ** 0.5 and corners.sum() == 4000


def test_every_square_changes_something_and_only_useless_ones_are_redrawn():
    """With one channel the sign is flipped; with more, each other choice is as likely."""
    x, random = torch.full((7000, 2, 6, 5), 0.5), random_numbers(7000, 7)
    best = x + 0.1  # only a square with both signs up changes nothing
    plain = propose_square(x, best, 0.1, 3, random)
    redrawn = propose_changing_square(x, best, 0.1, 3, random)
    is_useless = (plain == best).flatten(1).all(1)
    assert 0.2 < is_useless.double().mean() < 0.3
    assert torch.equal(plain[~is_useless], redrawn[~is_useless])
    is_changed = (redrawn[is_useless] != best[is_useless]).flatten(2).any(2)
    choices = is_changed.long() @ torch.tensor([1, 2])
    share = choices.bincount(minlength=4) / len(choices)
    assert share[0] == 0 and torch.allclose(share[1:], torch.tensor(1 / 3), atol=0.05)


@pytest.mark.parametrize("channels", [1, 2, 3, 24, 30])
def test_the_chosen_channels_are_never_empty(channels):
    u = torch.tensor([0.0, 0.3, 0.5, 1 - 2**-24])
    chosen = choose_channels(channels, u)
    assert chosen.shape == (4, channels) and chosen.any(1).all() and chosen[-1].all()


# L2: bumps and windows


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (4, 4), (1, 1), (9, 14)])
def test_the_l2_start_is_a_grid_that_spends_eps(size):
    x = torch.full((6, 3, *size), 0.5)
    d = start_with_bumps(x, 0.1, start_noise(6)) - x
    assert torch.allclose(norm_of(d, "L2"), torch.tensor(0.1), atol=1e-5)
    assert size == (1, 1) or not torch.allclose(d[0], d[1])


@pytest.mark.parametrize("side", [1, 2, 3, 7, 10])
def test_a_pair_of_bumps_has_opposite_signs_and_norm_one(side):
    pair = make_bump_pair(side, CPU, torch.float64)
    assert pair.norm() == pytest.approx(1)
    assert (pair[: side // 2] > 0).all() and (pair[side // 2 :] < 0).all()


def test_a_bump_is_the_formula_of_section_3():
    """The upper half has h1 = 4 rows and h2 = 8 columns.

    The height of a ring is the sum of 1 / (k + 1)^2 from this ring to the farthest.
    """
    upper = make_bump_pair(8, CPU, torch.float64)[:4]
    rings = {d: sum((k + 1) ** -2 for k in range(d, 5)) for d in range(5)}
    expected = torch.empty(4, 8)
    for row in range(4):
        for column in range(8):
            expected[row, column] = rings[max(abs(row - 2), abs(column - 4))]
    assert torch.allclose(upper / upper.max(), (expected / expected.max()).double())


def test_a_window_takes_its_budget_from_another():
    """Algorithm 3: outside both windows only a common scale changes; window 2 is emptied."""
    x = torch.full((200, 1, 12, 12), 0.5, dtype=torch.float64)
    best = start_with_bumps(x, 0.1, start_noise(200))
    random = start_noise(200).fork("window").uniform(torch.zeros(200, 6)).double()
    proposed = propose_window(x, best, 0.1, 3, random)
    assert torch.allclose(norm_of(proposed - x, "L2"), torch.tensor(0.1).double(), atol=1e-9)
    ratio = ((proposed - x) / (best - x)).flatten(1)
    is_in_window = (ratio - ratio.median(1, keepdim=True).values).abs() > 1e-6
    assert is_in_window.sum(1).max() <= 18
    emptied = ((proposed == x) & (best != x)).flatten(1).sum(1)
    assert (emptied > 0).sum() > 150 and emptied.max() <= 9
